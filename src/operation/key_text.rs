//! A key as text: what `Display` writes is read back.
//!
//! Promises: text displayed without quotes reads as that text alone; any other text read is one key, or an error that
//! says where it stops. Never: trims, guesses, or nests.

use super::key_part::{KeyPart, Number};
use crate::{Error, Key, Result};

/// Whether a key's text can be displayed as it is: it doesn't begin like another form, and is not a number.
pub(super) fn is_plain(text: &str) -> bool {
    let begins_otherwise = ["\"", "(", "0x"].iter().any(|begin| text.starts_with(begin));
    !begins_otherwise && Number::parse(text).is_none()
}

/// The key that is displayed so, without checking whether it can be used.
pub(super) fn read(text: &str) -> Result<Key<'static>> {
    let mut input = Input { all: text, rest: text };
    if is_plain(text) {
        return Ok(Key::from(unescape(&mut input, None)?));
    }
    if input.skip("(") {
        return parts(&mut input);
    }
    let key = match value(&mut input)? {
        TextPart::Bytes(bytes) => Key::from(bytes),
        TextPart::Number(number) => Key::of_number(number),
    };
    input.end().map(|()| key)
}

enum TextPart {
    Bytes(Vec<u8>),
    Number(Number),
}

/// The rest of the input.
struct Input<'t> {
    all: &'t str,
    rest: &'t str,
}

impl<'t> Input<'t> {
    fn skip(&mut self, token: &str) -> bool {
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next();
        self.rest = chars.as_str();
        next
    }

    fn take_while(&mut self, is_part: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest.trim_start_matches(is_part);
        let (taken, rest) = self.rest.split_at(self.rest.len() - rest.len());
        self.rest = rest;
        taken
    }

    fn end(&self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.stops("nothing more")) }
    }

    fn stops(&self, wanted: &str) -> Error {
        let at = self.all.len() - self.rest.len();
        Error::invalid(format!(
            "no key: {wanted} is expected at byte {at}; write it as a key is displayed, text that could be \
             anything else in quotes"
        ))
    }
}

/// Reads what follows the parenthesis: `"a", 17)`, or `"a",)` for one part.
fn parts(input: &mut Input<'_>) -> Result<Key<'static>> {
    let mut parts: Vec<KeyPart<'static>> = Vec::new();
    loop {
        parts.push(match value(input)? {
            TextPart::Bytes(bytes) => KeyPart::from(bytes),
            TextPart::Number(number) => KeyPart::of_number(number),
        });
        let is_over = if parts.len() == 1 { input.skip(",)") } else { input.skip(")") };
        if is_over {
            return input.end().map(|()| Key::from_parts(parts));
        }
        if !input.skip(", ") {
            return Err(input.stops("another part or the end of the list"));
        }
    }
}

/// Text in quotes, bytes in hexadecimal, or a number.
fn value(input: &mut Input<'_>) -> Result<TextPart> {
    if input.skip("\"") {
        return unescape(input, Some('"')).map(|text| TextPart::Bytes(text.into_bytes()));
    }
    if input.skip("0x") {
        let digits = input.take_while(|c| c.is_ascii_hexdigit());
        return hex(digits)
            .map(TextPart::Bytes)
            .ok_or_else(|| input.stops("a whole hexadecimal byte"));
    }
    let digits = input.take_while(|c| c == '-' || c.is_ascii_digit());
    Number::parse(digits)
        .map(TextPart::Number)
        .ok_or_else(|| input.stops("text in quotes, bytes after 0x, or a number"))
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    let bytes = pairs.map(|pair| {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
        u8::from_str_radix(pair, 16).ok()
    });
    bytes.collect::<Option<Vec<u8>>>().filter(|bytes| !bytes.is_empty())
}

/// Text up to `end`, or all of it, without its escapes.
fn unescape(input: &mut Input<'_>, end: Option<char>) -> Result<String> {
    let mut text = String::new();
    loop {
        match input.next() {
            None if end.is_none() => return Ok(text),
            None => return Err(input.stops("a quote")),
            Some('\\') => text.push(escaped(input)?),
            Some(c) if end == Some(c) => return Ok(text),
            Some(c) => text.push(c),
        }
    }
}

fn escaped(input: &mut Input<'_>) -> Result<char> {
    let unknown = |input: &Input<'_>| input.stops("an escape as in a string of Rust");
    Ok(match input.next() {
        Some('n') => '\n',
        Some('r') => '\r',
        Some('t') => '\t',
        Some('0') => '\0',
        Some(c @ ('\\' | '"' | '\'')) => c,
        Some('u') if input.skip("{") => {
            let digits = input.take_while(|c| c.is_ascii_hexdigit());
            let code = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32);
            let code = code.ok_or_else(|| unknown(input))?;
            if !input.skip("}") {
                return Err(unknown(input));
            }
            code
        }
        _ => return Err(unknown(input)),
    })
}
