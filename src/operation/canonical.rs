//! The canonical form of a JSON text, by RFC 8785 (JCS): no spaces, members sorted, one way to write each value.
//!
//! Promises: texts that mean the same have the same form, and the form of a form is itself; two requests never share one
//! because of what a reader dropped (a repeated name, the last digits of an integer). Never: shows contents in an error.
//!
//! Written by hand because a parsed value is too late: by then repeated names are gone, and large integers rounded.

use std::fmt::Write;

use crate::{Error, Result};

/// Arrays and objects within each other: as many as `serde_json` reads.
const LEVELS_MAX: u32 = 127;

/// From here on doubles skip integers.
const EXACT_INTEGERS: f64 = 9_007_199_254_740_992.0;

/// Returns the canonical form of `text`, or `Invalid` with the place of what has none.
pub(super) fn canonical(text: &[u8]) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let done = match std::str::from_utf8(text) {
        Ok(text) => whole(&mut JsonText { text, at: 0 }, &mut out),
        Err(e) => Err(NoForm { what: "bytes that are not UTF-8", at: e.valid_up_to() }),
    };
    let invalid =
        |bad: NoForm| Error::invalid(format!("{} at byte {} of a JSON text", bad.what, bad.at));
    done.map(|()| out).map_err(invalid)
}

struct NoForm {
    what: &'static str,
    at: usize,
}

struct JsonText<'t> {
    text: &'t str,
    at: usize,
}

fn whole(from: &mut JsonText<'_>, out: &mut String) -> Result<(), NoForm> {
    value(from, LEVELS_MAX, out)?;
    match from.next() {
        None => Ok(()),
        Some(_) => from.bad("more after the value"),
    }
}

/// Appends the form of the value that comes next. `levels` more may be opened.
fn value(from: &mut JsonText<'_>, levels: u32, out: &mut String) -> Result<(), NoForm> {
    match from.next() {
        Some(b'{') => object(from, levels, out),
        Some(b'[') => array(from, levels, out),
        Some(b'"') => {
            write_string(&string(from)?, out);
            Ok(())
        }
        Some(b'-' | b'0'..=b'9') => number(from, out),
        Some(b't') => literal(from, "true", out),
        Some(b'f') => literal(from, "false", out),
        Some(b'n') => literal(from, "null", out),
        Some(_) => from.bad("no value"),
        None => from.bad("an early end"),
    }
}

fn literal(from: &mut JsonText<'_>, word: &'static str, out: &mut String) -> Result<(), NoForm> {
    if !from.rest().starts_with(word) {
        return from.bad("no value");
    }
    from.at += word.len();
    out.push_str(word);
    Ok(())
}

fn array(from: &mut JsonText<'_>, levels: u32, out: &mut String) -> Result<(), NoForm> {
    let levels = from.open(levels)?;
    out.push('[');
    let mut is_first = true;
    while from.goes_on(b']', is_first)? {
        if !is_first {
            out.push(',');
        }
        is_first = false;
        value(from, levels, out)?;
    }
    out.push(']');
    Ok(())
}

fn object(from: &mut JsonText<'_>, levels: u32, out: &mut String) -> Result<(), NoForm> {
    let begin = from.at;
    let levels = from.open(levels)?;
    let mut members: Vec<(String, String)> = Vec::new();
    while from.goes_on(b'}', members.is_empty())? {
        if from.next() != Some(b'"') {
            return from.bad("no name of a member");
        }
        let name = string(from)?;
        if from.next() != Some(b':') {
            return from.bad("no colon after a name");
        }
        from.at += 1;
        let mut form = String::new();
        value(from, levels, &mut form)?;
        members.push((name, form));
    }
    // By UTF-16 code units, which is not the order of characters: those past U+FFFF come before U+E000.
    members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
    if members.windows(2).any(|pair| matches!(pair, [(a, _), (b, _)] if a == b)) {
        return Err(NoForm { what: "two members of the same name in the object", at: begin });
    }
    out.push('{');
    for (at, (name, form)) in members.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        write_string(name, out);
        out.push(':');
        out.push_str(form);
    }
    out.push('}');
    Ok(())
}

/// Reads a string, whose first quote is next.
fn string(from: &mut JsonText<'_>) -> Result<String, NoForm> {
    from.at += 1;
    let mut out = String::new();
    loop {
        let rest = from.rest();
        let plain = rest.find(|c: char| c == '"' || c == '\\' || c < ' ').unwrap_or(rest.len());
        let (plain, _) = rest.split_at(plain);
        out.push_str(plain);
        from.at += plain.len();
        match from.peek() {
            Some(b'"') => {
                from.at += 1;
                return Ok(out);
            }
            Some(b'\\') => out.push(escaped(from)?),
            Some(_) => return from.bad("a control character in a string"),
            None => return from.bad("an early end"),
        }
    }
}

/// Reads an escape, whose backslash is next.
fn escaped(from: &mut JsonText<'_>) -> Result<char, NoForm> {
    let begin = from.at;
    from.at += 1;
    let short = match from.peek() {
        Some(b'u') => return code_point(from, begin),
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'"') => '"',
        Some(b'\\') => '\\',
        Some(b'/') => '/',
        _ => return Err(NoForm { what: "an unknown escape", at: begin }),
    };
    from.at += 1;
    Ok(short)
}

/// Reads `u` and its four hexadecimal digits, and a second such escape where the first is half of a character.
fn code_point(from: &mut JsonText<'_>, begin: usize) -> Result<char, NoForm> {
    let first = code_unit(from, begin)?;
    let lone = NoForm { what: "half of a character (a lone surrogate)", at: begin };
    let mut units = vec![first];
    if (0xd800..0xdc00).contains(&first) {
        if !from.rest().starts_with("\\u") {
            return Err(lone);
        }
        from.at += 1;
        units.push(code_unit(from, begin)?);
    }
    match char::decode_utf16(units).next() {
        Some(Ok(c)) => Ok(c),
        _ => Err(lone),
    }
}

fn code_unit(from: &mut JsonText<'_>, begin: usize) -> Result<u16, NoForm> {
    let digits = from.rest().get(1..5).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    let unit = digits.and_then(|hex| u16::from_str_radix(hex, 16).ok());
    let unit =
        unit.ok_or(NoForm { what: "an escape without four hexadecimal digits", at: begin })?;
    from.at += 5;
    Ok(unit)
}

fn write_string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            c if c < ' ' => {
                // Writing to a string doesn't fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn number(from: &mut JsonText<'_>, out: &mut String) -> Result<(), NoForm> {
    let begin = from.at;
    from.skip_if(b"-");
    match from.peek() {
        Some(b'0') => from.at += 1,
        _ => from.digits()?,
    }
    let mut is_integer = true;
    if from.skip_if(b".") {
        is_integer = false;
        from.digits()?;
    }
    if from.skip_if(b"eE") {
        is_integer = false;
        from.skip_if(b"+-");
        from.digits()?;
    }
    let written = from.text.get(begin..from.at).unwrap_or_default();
    let bad = |what| Err(NoForm { what, at: begin });
    let Ok(double) = written.parse::<f64>() else { return bad("no number") };
    if double.is_infinite() {
        return bad("a number beyond the range of a double");
    }
    let form_begin = out.len();
    let bug = NoForm { what: "a number without a form (a bug of onlyonce)", at: begin };
    write_number(double, out).ok_or(bug)?;
    let form = out.split_at(form_begin).1;
    if is_integer && double.abs() >= EXACT_INTEGERS && written != form && !is_exact(written, double)
    {
        return bad("an integer that no double holds (send it as a string)");
    }
    Ok(())
}

/// Whether an integer is that double. A longer integer than 128 bits hold is not known to be.
fn is_exact(written: &str, double: f64) -> bool {
    let digits = written.trim_start_matches('-');
    // Within 128 bits a cast of an integral double is exact.
    digits
        .parse::<u128>()
        .is_ok_and(|integer| double.abs() < 2_f64.powi(127) && double.abs() as u128 == integer)
}

/// As ECMAScript's `Number.prototype.toString` does. `None`: Rust writes numbers in another way than it says.
fn write_number(double: f64, out: &mut String) -> Option<()> {
    if double == 0.0 {
        // Also for -0.
        out.push('0');
        return Some(());
    }
    if double < 0.0 {
        out.push('-');
    }
    // The fewest digits that give the number: "1.25e-7". Of two such texts ECMAScript takes the nearer one, and of two
    // that are equally near the even one, which is how a text of a given length is rounded.
    let fewest = format!("{:e}", double.abs());
    let decimals = fewest.split_once('e')?.0.split_once('.').map_or(0, |(_, after)| after.len());
    let nearest = format!("{:.decimals$e}", double.abs());
    let is_same = nearest.parse::<f64>().is_ok_and(|nearest| nearest == double.abs());
    let shortest = if is_same { nearest } else { fewest };
    let (mantissa, exponent) = shortest.split_once('e')?;
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let count = digits.len() as i32;
    // The number is 0.DIGITS times ten to the power of `point`.
    let point = exponent.parse::<i32>().ok()? + 1;
    if (1..=21).contains(&point) {
        if count <= point {
            out.push_str(&digits);
            (count..point).for_each(|_| out.push('0'));
        } else {
            let (whole, rest) = digits.split_at(point as usize);
            out.push_str(whole);
            out.push('.');
            out.push_str(rest);
        }
    } else if (-5..=0).contains(&point) {
        out.push_str("0.");
        (point..0).for_each(|_| out.push('0'));
        out.push_str(&digits);
    } else {
        let sign = if point > 0 { "e+" } else { "e-" };
        out.push_str(mantissa);
        out.push_str(sign);
        out.push_str(&(point - 1).unsigned_abs().to_string());
    }
    Some(())
}

impl<'t> JsonText<'t> {
    fn rest(&self) -> &'t str {
        // Never past the end, nor inside a character; if it were, nothing more would be read.
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Skips white space; returns the byte after it.
    fn next(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
        self.peek()
    }

    /// Skips one byte if it is one of these.
    fn skip_if(&mut self, bytes: &[u8]) -> bool {
        let is = self.peek().is_some_and(|byte| bytes.contains(&byte));
        self.at += usize::from(is);
        is
    }

    /// Skips digits, of which there must be one.
    fn digits(&mut self) -> Result<(), NoForm> {
        if !self.skip_if(b"0123456789") {
            return self.bad("no digit");
        }
        while self.skip_if(b"0123456789") {}
        Ok(())
    }

    /// Skips a bracket; returns the levels left.
    fn open(&mut self, levels: u32) -> Result<u32, NoForm> {
        match levels.checked_sub(1) {
            Some(left) => {
                self.at += 1;
                Ok(left)
            }
            None => self.bad("more than 127 levels of arrays and objects"),
        }
    }

    /// Whether another element comes before the bracket that closes the list; skips a comma, or that bracket.
    fn goes_on(&mut self, close: u8, is_first: bool) -> Result<bool, NoForm> {
        match self.next() {
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            Some(_) if is_first => Ok(true),
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            Some(_) => self.bad("no comma between two elements"),
            None => self.bad("an early end"),
        }
    }

    fn bad<T>(&self, what: &'static str) -> Result<T, NoForm> {
        Err(NoForm { what, at: self.at })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::ErrorKind;

    fn form(text: impl AsRef<[u8]>) -> String {
        let text = text.as_ref();
        canonical(text).unwrap_or_else(|e| panic!("{}: {e}", String::from_utf8_lossy(text)))
    }

    fn refused(text: impl AsRef<[u8]>) -> String {
        let error = canonical(text.as_ref()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        error.to_string()
    }

    /// RFC 8785, 3.2.2 and 3.2.4.
    #[test]
    fn the_example_of_the_rfc_has_the_form_of_the_rfc() {
        let text = r#"{
            "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
            "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
            "literals": [null, true, false]
        }"#;
        let expected = r#"{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}"#;
        assert_eq!(form(text), expected);
    }

    /// RFC 8785, 3.2.3: a character past U+FFFF is sorted by its first surrogate.
    #[test]
    fn members_are_sorted_by_utf_16_code_units() {
        let text = r#"{
            "\u20ac": "Euro Sign",
            "\r": "Carriage Return",
            "\ufb33": "Hebrew Letter Dalet With Dagesh",
            "1": "One",
            "\ud83d\ude00": "Emoji: Grinning Face",
            "\u0080": "Control",
            "\u00f6": "Latin Small Letter O With Diaeresis"
        }"#;
        let values: Vec<Value> = [
            "Carriage Return",
            "One",
            "Control",
            "Latin Small Letter O With Diaeresis",
            "Euro Sign",
            "Emoji: Grinning Face",
            "Hebrew Letter Dalet With Dagesh",
        ]
        .map(Value::from)
        .into();
        let form = form(text);
        let mut at = 0;
        for value in values {
            let place = form.find(&value.to_string()).unwrap();
            assert!(place > at, "{value} in {form}");
            at = place;
        }
        assert_eq!(
            super::canonical(br#"{"b":{"z":1,"a":2},"a":[]}"#).unwrap(),
            r#"{"a":[],"b":{"a":2,"z":1}}"#
        );
        assert_eq!(super::canonical(br#"{"aa":1,"a":2,"":3}"#).unwrap(), r#"{"":3,"a":2,"aa":1}"#);
    }

    /// RFC 8785, appendix B, and more.
    #[test]
    fn numbers_are_written_as_ecmascript_writes_them() {
        let cases: [(u64, &str); 27] = [
            (0x0000_0000_0000_0000, "0"),
            (0x8000_0000_0000_0000, "0"),
            (0x0000_0000_0000_0001, "5e-324"),
            (0x8000_0000_0000_0001, "-5e-324"),
            (0x7fef_ffff_ffff_ffff, "1.7976931348623157e+308"),
            (0xffef_ffff_ffff_ffff, "-1.7976931348623157e+308"),
            (0x4340_0000_0000_0000, "9007199254740992"),
            (0xc340_0000_0000_0000, "-9007199254740992"),
            (0x4430_0000_0000_0000, "295147905179352830000"),
            (0x44b5_2d02_c7e1_4af5, "9.999999999999997e+22"),
            (0x44b5_2d02_c7e1_4af6, "1e+23"),
            (0x44b5_2d02_c7e1_4af7, "1.0000000000000001e+23"),
            (0x444b_1ae4_d6e2_ef4e, "999999999999999700000"),
            (0x444b_1ae4_d6e2_ef4f, "999999999999999900000"),
            (0x444b_1ae4_d6e2_ef50, "1e+21"),
            (0x3eb0_c6f7_a0b5_ed8c, "9.999999999999997e-7"),
            (0x3eb0_c6f7_a0b5_ed8d, "0.000001"),
            (0x41b3_de43_5555_5553, "333333333.3333332"),
            (0x41b3_de43_5555_5554, "333333333.33333325"),
            (0x41b3_de43_5555_5555, "333333333.3333333"),
            (0x41b3_de43_5555_5556, "333333333.3333334"),
            (0x41b3_de43_5555_5557, "333333333.33333343"),
            (0xbecb_f647_612f_3696, "-0.0000033333333333333333"),
            (0x4314_3ff3_c1cb_0959, "1424953923781206.2"),
            // Halfway between two texts of that length: the even one.
            (0x4318_eac7_b7bf_fae5, "1753385735814841.2"),
            (0xc309_b2b3_3e4c_aa32, "-904169666483526.2"),
            (0x42b5_d182_c567_16d0, "23989586323222.812"),
        ];
        for (bits, expected) in cases {
            let mut out = String::new();
            write_number(f64::from_bits(bits), &mut out).unwrap();
            assert_eq!(out, expected, "{bits:x}");
            assert_eq!(form(expected), expected);
        }
    }

    #[test]
    fn each_way_to_write_a_number_has_the_same_form() {
        let cases = [
            ("-0", "0"),
            ("-0.0e-5", "0"),
            ("0e400", "0"),
            ("1e-400", "0"), // as ECMAScript reads it
            ("1e21", "1e+21"),
            ("1000000000000000000000", "1e+21"),
            ("100000000000000000000", "100000000000000000000"),
            ("1E2", "100"),
            ("1e-7", "1e-7"),
            ("0.0000001", "1e-7"),
            ("1e-6", "0.000001"),
            ("2.2250738585072014e-308", "2.2250738585072014e-308"), // the least normal one
            ("2.225073858507201e-308", "2.225073858507201e-308"),   // the greatest subnormal one
            ("4.9406564584124654e-324", "5e-324"),
            ("17.0", "17"),
            ("9007199254740993.0", "9007199254740992"), // no integer: rounded, as ECMAScript does
        ];
        for (text, expected) in cases {
            assert_eq!(form(text), expected, "{text}");
        }
    }

    /// Ids of 64 bits are common: rounded to doubles, two of them would be one request.
    #[test]
    fn an_integer_that_would_be_rounded_is_refused() {
        for text in
            ["9007199254740993", "-9007199254740993", "[1234567890123456789]", &"9".repeat(40)]
        {
            assert!(refused(text).starts_with("an integer that no double holds"), "{text}");
        }
        for text in
            ["9007199254740991", "9007199254740992", "-9007199254740994", "9223372036854775808"]
        {
            form(text);
        }
    }

    #[test]
    fn strings_have_one_form() {
        assert_eq!(
            form(r#""\u0000\u001f\u007f\u2028\/\u00e9""#),
            "\"\\u0000\\u001f\u{7f}\u{2028}/é\""
        );
        assert_eq!(form(r#""\b\t\n\f\r\"\\""#), r#""\b\t\n\f\r\"\\""#);
        assert_eq!(form(r#""\uD83D\uDE00""#), "\"😀\"");
        // Characters are not normalised: this is another string.
        assert_ne!(form(r#""\u0065\u0301""#), form(r#""\u00e9""#));
    }

    #[test]
    fn half_a_character_is_refused() {
        let halves = [
            r#""\ud83d""#,
            r#""\ude00""#,
            r#""\ud83d\u0041""#,
            r#""\ud83d\ud83d""#,
            r#""\ude00\ud83d""#,
            r#"{"\ud83dx":1}"#,
        ];
        for text in halves {
            assert!(refused(text).starts_with("half of a character"), "{text}");
        }
        assert!(refused(b"\"\xed\xa0\xbd\"").starts_with("bytes that are not UTF-8 at byte 1"));
    }

    #[test]
    fn a_name_given_twice_is_refused() {
        for text in
            [r#"{"a":1,"a":1}"#, r#"{"a":1,"b":2,"\u0061":3}"#, r#"[{"x":{"a":1,"":2,"a":1}}]"#]
        {
            assert!(refused(text).starts_with("two members of the same name"), "{text}");
        }
        assert_eq!(form(r#"[{"a":1},{"a":2}]"#), r#"[{"a":1},{"a":2}]"#);
    }

    #[test]
    fn what_is_not_json_is_refused() {
        let cases = [
            "",
            " ",
            "nul",
            "nulll",
            "True",
            "01",
            "-",
            "+1",
            ".5",
            "1.",
            "1.e2",
            "1e",
            "1e+",
            "0x1",
            "NaN",
            "Infinity",
            "1e400",
            "-1e400",
            "[",
            "]",
            "[1",
            "[1,",
            "[1,]",
            "[,1]",
            "[1 2]",
            "{",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":1,}",
            "{a:1}",
            "{\"a\" 1}",
            "{1:2}",
            "\"",
            "\"\\\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\u12g4\"",
            "\"\\u+123\"",
            "\"a\nb\"",
            "'a'",
            "1 2",
            "[] []",
            "\u{feff}1",
            "// c\n1",
            "\u{a0}1",
        ];
        for text in cases {
            refused(text);
            assert!(serde_json::from_str::<Value>(text).is_err(), "{text}");
        }
        let nested = |levels| [vec![b'['; levels], vec![b']'; levels]].concat();
        assert_eq!(form(nested(127)).len(), 254);
        assert!(refused(nested(128)).starts_with("more than 127 levels"));
        refused(vec![b'['; 1 << 20]);
        assert!(!refused(r#"{"card": 4111 1111}"#).contains("4111"), "no contents");
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-(1_i64 << 53)..1 << 53).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::hash_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// As numbers compare: a form writes 17.0 as 17.
    fn same(a: &Value, b: &Value) -> bool {
        match (a, b) {
            (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
            (Value::Array(a), Value::Array(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
            }
            (Value::Object(a), Value::Object(b)) => {
                a.len() == b.len()
                    && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| same(a, b)))
            }
            _ => a == b,
        }
    }

    proptest! {
        #[test]
        fn a_form_means_the_same_and_is_its_own_form(value in json()) {
            let form = form(value.to_string());
            prop_assert_eq!(&super::canonical(form.as_bytes()).unwrap(), &form);
            prop_assert_eq!(&super::canonical(serde_json::to_string_pretty(&value).unwrap().as_bytes()).unwrap(), &form);
            prop_assert!(same(&serde_json::from_str(&form).unwrap(), &value), "{}", form);
        }

        /// What it takes is JSON, and what it refuses isn't, or is something that a canonical form must not have.
        #[test]
        fn it_takes_what_another_reader_takes(value in json(), place: prop::sample::Index, byte: u8, cut: bool) {
            let mut text = value.to_string().into_bytes();
            let place = place.index(text.len());
            text[place] = byte;
            if cut {
                text.truncate(place);
            }
            let other = serde_json::from_slice::<Value>(&text);
            match canonical(&text) {
                Ok(form) => prop_assert!(same(&serde_json::from_str(&form).unwrap(), &other.unwrap())),
                Err(why) => {
                    let why = why.to_string();
                    let is_stricter = why.contains("same name") || why.contains("no double holds");
                    prop_assert!(other.is_err() || is_stricter, "{}", why);
                }
            }
        }
    }
}
