//! The public surface: docs/surface.txt lists it, and the sources agree.
//!
//! Read from the sources, so that it needs neither a nightly compiler nor a build of each set of features. Items made by
//! a macro are listed as the macro writes them. Names of types are unique in the crate, so a name finds its definition.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::Span;
use syn::spanned::Spanned as _;
use syn::{Attribute, Fields, ImplItem, Item, TraitItem, UseTree, Visibility};

const COMMAND: &str = "ONLYONCE_RENEW=1 cargo test --test it surface";

#[test]
fn the_page_lists_every_public_item() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = root.join("docs/surface.txt");
    let now = Crate::read(&root.join("src")).surface();
    if std::env::var_os("ONLYONCE_RENEW").is_some() {
        std::fs::write(&page, &now).unwrap();
    }
    let listed = std::fs::read_to_string(&page).unwrap_or_default();
    let [had, has]: [BTreeSet<&str>; 2] = [&listed, &now].map(|text| text.lines().collect());
    let gone = had.difference(&has).map(|line| format!("- {line}"));
    let new = has.difference(&had).map(|line| format!("+ {line}"));
    let changes: Vec<String> = gone.chain(new).collect();
    assert!(
        listed == now,
        "the public surface is not the one in docs/surface.txt; if that is meant: {COMMAND}\n{}",
        changes.join("\n")
    );
}

#[test]
fn items_in_source_are_listed_as_their_callers_see_them() {
    let source = r#"
        //! A crate.
        mod inner { pub struct Shown(u64); pub struct NotShown; pub(crate) trait Ours {} pub fn free() {} }
        pub use inner::Shown;
        /// Words.
        #[derive(Clone)]
        #[non_exhaustive]
        pub enum Kind { /// One.
            One, Two { /// What.
                what: u64 }, Three(Shown) }
        pub struct Open { pub field: Vec<u8>, hidden: u8 }
        impl<'k> Shown {
            /// Words.
            #[must_use]
            pub fn long(
                &self,
                other: impl Into<Vec<u8>>, // why
            ) -> Result<(), Kind>
            where
                Self: Sized,
            { Ok(()) }
            pub(crate) fn not(&self) {}
            #[doc(hidden)]
            pub fn nor(&self) {}
            #[cfg(test)]
            pub fn nor_this(&self) {}
        }
        impl inner::Ours for Shown {}
        impl From<u64> for Shown { fn from(n: u64) -> Self { Shown(n) } }
        impl Iterator for Open { type Item = u8; fn next(&mut self) -> Option<u8> { None } }
        pub trait Asked: Send { const NAME: &'static str; fn ask(&self) -> u64 { 1 } }
        impl Asked for Vec<u8> { const NAME: &'static str = "bytes"; }
        #[cfg(feature = "extra")]
        pub mod extra { pub fn call(n: u64) -> u64 { n } pub use super::inner::NotShown as Renamed; }
        #[cfg(any(test, feature = "extra"))]
        pub mod more { pub const MOST: u64 = 1; }
        #[cfg(any(feature = "extra", feature = "other"))]
        impl From<u8> for Shown { fn from(n: u8) -> Self { Shown(n.into()) } }
        #[cfg(test)]
        mod tests { pub fn test() {} }
    "#;
    let mut found = Crate::default();
    found.take(source, &Place::root(), Path::new("none"));
    let lines = found.surface();
    let lines: Vec<&str> = lines.lines().filter(|line| !line.starts_with('#')).collect();
    let expected = r#"
Kind: #[derive(Clone)] #[non_exhaustive] pub enum Kind
Kind: One
Kind: Three(Shown)
Kind: Two { what: u64 }
Open: pub struct Open
Open: impl Iterator for Open, type Item = u8
Open: pub field: Vec<u8>
Shown: pub struct Shown
Shown: #[must_use] pub fn long(&self, other: impl Into<Vec<u8>>) -> Result<(), Kind> where Self: Sized
Shown: impl From<u64> for Shown
Shown: impl From<u8> for Shown (feature = "extra" or "other")
Asked: pub trait Asked: Send
Asked: const NAME: &'static str
Asked: fn ask(&self) -> u64 { .. }
Asked: impl Asked for Vec<u8>
extra::Renamed (feature = "extra"): pub struct NotShown
extra::call (feature = "extra"): pub fn call(n: u64) -> u64
more::MOST (feature = "extra"): pub const MOST: u64 = 1
"#;
    let [mut listed, mut expected]: [Vec<&str>; 2] = [lines, expected.lines().collect()]
        .map(|lines| lines.into_iter().filter(|l| !l.is_empty()).collect());
    listed.sort_unstable();
    expected.sort_unstable();
    assert_eq!(listed, expected);
}

/// A place in the tree of modules.
#[derive(Clone, Default, Debug)]
struct Place {
    /// Names of modules, from the root.
    path: Vec<String>,
    /// Whether a caller can name this module.
    is_public: bool,
    /// The feature that it needs.
    feature: Option<String>,
}

/// A name that callers can use, and its definition.
#[derive(Clone, Debug)]
struct Name {
    shown: String,
    defined: String,
    feature: Option<String>,
}

struct Method {
    of: String,
    line: String,
    feature: Option<String>,
}

/// The impl of a trait for a type.
struct Implementation {
    of: String,
    of_trait: String,
    line: String,
    feature: Option<String>,
}

#[derive(Default)]
struct Crate {
    names: Vec<Name>,
    /// The lines of each defined name.
    items: BTreeMap<String, Vec<String>>,
    /// Lines about a type or a trait: methods, and impls with their trait or type.
    methods: Vec<Method>,
    impls: Vec<Implementation>,
    traits: BTreeSet<String>,
    /// Macros that make items, by their names.
    macros: BTreeMap<String, ItemMaker>,
}

/// A macro that makes items.
#[derive(Default)]
struct ItemMaker {
    /// The heads of the impls in it, and how it is called.
    lines: BTreeSet<String>,
    /// The traits that it implements.
    of_traits: BTreeSet<String>,
}

impl Place {
    fn root() -> Place {
        Place { is_public: true, ..Place::default() }
    }

    fn below(&self, name: &str, is_public: bool, feature: Option<String>) -> Place {
        let path = self.path.iter().cloned().chain([name.to_owned()]).collect();
        let is_public = self.is_public && is_public;
        Place { path, is_public, feature: feature.or_else(|| self.feature.clone()) }
    }

    fn shown(&self, name: &str) -> String {
        self.path.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join("::")
    }
}

impl Crate {
    fn read(src: &Path) -> Crate {
        let mut found = Crate::default();
        let root = std::fs::read_to_string(src.join("lib.rs")).unwrap();
        found.take(&root, &Place::root(), src);
        found
    }

    /// Reads a file. `dir` is the directory of its modules' files.
    fn take(&mut self, text: &str, place: &Place, dir: &Path) {
        let file = syn::parse_file(text).unwrap();
        for item in &file.items {
            self.item(item, text, place, dir);
        }
    }

    fn item(&mut self, item: &Item, text: &str, place: &Place, dir: &Path) {
        match item {
            Item::Mod(module) => {
                let name = module.ident.to_string();
                if is_left_out(&module.attrs) {
                    return;
                }
                let inside = place.below(&name, is_pub(&module.vis), feature(&module.attrs));
                match &module.content {
                    Some((_, items)) => {
                        items.iter().for_each(|item| self.item(item, text, &inside, dir));
                    }
                    None => {
                        let files =
                            [dir.join(format!("{name}.rs")), dir.join(&name).join("mod.rs")];
                        let file: &PathBuf = files.iter().find(|file| file.exists()).unwrap();
                        let text = std::fs::read_to_string(file).unwrap();
                        self.take(&text, &inside, &dir.join(&name));
                    }
                }
            }
            Item::Use(used)
                if is_pub(&used.vis) && place.is_public && !is_left_out(&used.attrs) =>
            {
                self.reexport(&used.tree, place, feature(&used.attrs));
            }
            Item::Struct(it) if is_pub(&it.vis) && !is_left_out(&it.attrs) => {
                let head = format!("pub struct {}{}", it.ident, cut(text, it.generics.span()));
                let lines = self.define(&it.ident.to_string(), &it.attrs, place, text, head);
                lines.extend(fields(&it.fields, text, true));
            }
            Item::Enum(it) if is_pub(&it.vis) && !is_left_out(&it.attrs) => {
                let head = format!("pub enum {}{}", it.ident, cut(text, it.generics.span()));
                let lines = self.define(&it.ident.to_string(), &it.attrs, place, text, head);
                for variant in &it.variants {
                    let end = variant.span().byte_range().end;
                    lines.push(tidy(&text[variant.ident.span().byte_range().start..end]));
                }
            }
            Item::Trait(it) => {
                self.traits.insert(it.ident.to_string());
                if !is_pub(&it.vis) || is_left_out(&it.attrs) {
                    return;
                }
                let head = slice(text, it.vis.span(), it.brace_token.span.open());
                let lines = self.define(&it.ident.to_string(), &it.attrs, place, text, head);
                for item in &it.items {
                    match item {
                        TraitItem::Fn(it) if !is_left_out(&it.attrs) => {
                            let default = if it.default.is_some() { " { .. }" } else { "" };
                            lines.push(cut(text, it.sig.span()) + default);
                        }
                        TraitItem::Const(it) => {
                            let end =
                                it.default.as_ref().map_or(it.ty.span(), |(_, value)| value.span());
                            lines.push(tidy(
                                &text[it.const_token.span.byte_range().start..end.byte_range().end],
                            ));
                        }
                        TraitItem::Type(it) => {
                            let start = it.type_token.span.byte_range().start;
                            lines.push(tidy(&text[start..it.semi_token.span.byte_range().start]));
                        }
                        _ => {}
                    }
                }
            }
            Item::Fn(it) if is_pub(&it.vis) && !is_left_out(&it.attrs) => {
                let head = format!("pub {}", cut(text, it.sig.span()));
                self.define(&it.sig.ident.to_string(), &it.attrs, place, text, head);
            }
            Item::Type(it) if is_pub(&it.vis) && !is_left_out(&it.attrs) => {
                let head = slice(text, it.vis.span(), it.semi_token.span);
                self.define(&it.ident.to_string(), &it.attrs, place, text, head);
            }
            Item::Const(it) if is_pub(&it.vis) && !is_left_out(&it.attrs) => {
                let head = slice(text, it.vis.span(), it.semi_token.span);
                self.define(&it.ident.to_string(), &it.attrs, place, text, head);
            }
            Item::Impl(it) if !is_left_out(&it.attrs) => self.implementation(it, text, place),
            Item::Macro(it) => self.macro_used(it, text),
            _ => {}
        }
    }

    /// A definition, and its name if its module is public.
    fn define(
        &mut self,
        name: &str,
        attrs: &[Attribute],
        place: &Place,
        text: &str,
        head: String,
    ) -> &mut Vec<String> {
        let feature = feature(attrs).or_else(|| place.feature.clone());
        if place.is_public {
            self.names.push(Name { shown: place.shown(name), defined: name.to_owned(), feature });
        }
        let before = self.items.insert(name.to_owned(), vec![marks(attrs, text) + &head]);
        assert!(before.is_none(), "two public definitions are named {name}");
        self.items.get_mut(name).unwrap()
    }

    fn reexport(&mut self, tree: &UseTree, place: &Place, feature: Option<String>) {
        let mut name = |defined: String, shown: String| {
            let feature = feature.clone().or_else(|| place.feature.clone());
            self.names.push(Name { shown: place.shown(&shown), defined, feature });
        };
        match tree {
            UseTree::Path(path) => self.reexport(&path.tree, place, feature),
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.reexport(tree, place, feature.clone()));
            }
            UseTree::Name(it) => name(it.ident.to_string(), it.ident.to_string()),
            UseTree::Rename(it) => name(it.ident.to_string(), it.rename.to_string()),
            UseTree::Glob(_) => panic!("a public glob hides what is public"),
        }
    }

    fn implementation(&mut self, it: &syn::ItemImpl, text: &str, place: &Place) {
        let of = last_name(&cut(text, it.self_ty.span()));
        let needs = |attrs| feature(attrs).or_else(|| place.feature.clone());
        let Some((_, path, _)) = &it.trait_ else {
            for item in &it.items {
                let (attrs, line) = match item {
                    ImplItem::Fn(it) if is_pub(&it.vis) => (&it.attrs, cut(text, it.sig.span())),
                    ImplItem::Const(it) if is_pub(&it.vis) => {
                        (&it.attrs, slice(text, it.const_token.span, it.eq_token.span))
                    }
                    _ => continue,
                };
                if !is_left_out(attrs) {
                    let line = format!("{}pub {line}", marks(attrs, text));
                    self.methods.push(Method { of: of.clone(), line, feature: needs(attrs) });
                }
            }
            return;
        };
        let mut line = slice(text, it.impl_token.span, it.brace_token.span.open());
        for item in &it.items {
            if let ImplItem::Type(it) = item {
                line += &format!(", {}", slice(text, it.type_token.span, it.semi_token.span));
            }
        }
        let of_trait = last_name(&cut(text, path.span()));
        self.impls.push(Implementation { of, of_trait, line, feature: needs(&it.attrs) });
    }

    /// A macro's own impls, as it writes them; a use of one that makes methods or impls, as it is written.
    fn macro_used(&mut self, it: &syn::ItemMacro, text: &str) {
        let name = it.ident.as_ref().map(ToString::to_string);
        let called = last_name(&cut(text, it.mac.path.span()));
        let body = without_comments(&text[it.mac.tokens.span().byte_range()]);
        match name {
            Some(name) => {
                let maker = self.macros.entry(name.clone()).or_default();
                for part in body.split("impl").skip(1) {
                    let head = part.split('{').next().unwrap();
                    if let Some((of_trait, _)) = head.split_once(" for ") {
                        maker.of_traits.insert(last_name(of_trait.rsplit(' ').next().unwrap()));
                        maker.lines.insert(format!("{name}!: {}", tidy(&format!("impl{head}"))));
                    }
                }
            }
            None if called == "policy_setters" => {
                for setter in body.split(';').filter(|setter| !setter.trim().is_empty()) {
                    let (name, of) = setter.split_once(':').unwrap();
                    let (name, of) = (tidy(name), tidy(of));
                    for of_type in ["Policy", "Operation"] {
                        let line = format!("pub fn {name}(mut self, {name}: {of}) -> Self");
                        self.methods.push(Method { of: of_type.into(), line, feature: None });
                    }
                }
            }
            None => {
                let line = format!("{called}!({})", tidy(&body));
                self.macros.entry(called).or_default().lines.insert(line);
            }
        }
    }

    fn surface(&self) -> String {
        let mut out = format!(
            "# The public surface of onlyonce, an item a line. A test writes and compares it: {COMMAND}\n\
             # A feature in brackets is what the item needs. What the documentation hides is left out.\n"
        );
        let mut names = self.names.clone();
        names.sort_by(|a, b| a.shown.cmp(&b.shown));
        names.dedup_by(|a, b| a.shown == b.shown);
        let public: BTreeSet<&str> = names.iter().map(|name| name.defined.as_str()).collect();
        for name in &names {
            let head = match &name.feature {
                Some(feature) => format!("{} (feature = {feature})", name.shown),
                None => name.shown.clone(),
            };
            let Some(lines) = self.items.get(&name.defined) else {
                panic!("{} leads to no definition", name.shown)
            };
            out.push('\n');
            let (first, mut rest) = (lines[0].clone(), lines[1..].to_vec());
            let with = |line: &str, feature: &Option<String>| match feature {
                Some(needed) if *feature != name.feature => {
                    format!("{line} (feature = {needed})")
                }
                _ => line.to_owned(),
            };
            let methods = self.methods.iter().filter(|it| it.of == name.defined);
            rest.extend(methods.map(|it| with(&it.line, &it.feature)));
            // With the type, unless the trait is private; for a type of another crate with the trait.
            let impls = self.impls.iter().filter(|it| match public.contains(it.of.as_str()) {
                true => {
                    let is_private = self.traits.contains(&it.of_trait);
                    it.of == name.defined && (!is_private || public.contains(it.of_trait.as_str()))
                }
                false => it.of_trait == name.defined,
            });
            rest.extend(impls.map(|it| with(&it.line, &it.feature)));
            rest.sort();
            rest.dedup();
            for line in [first].iter().chain(&rest) {
                out += &format!("{head}: {line}\n");
            }
        }
        // What implements nothing but our own traits shows nothing.
        let is_private = |name: &String| self.traits.contains(name) && !public.contains(&**name);
        let is_shown = |of: &BTreeSet<String>| of.is_empty() || !of.iter().all(&is_private);
        let macros = self.macros.values().filter(|maker| is_shown(&maker.of_traits));
        let lines: Vec<_> = macros.flat_map(|maker| &maker.lines).collect();
        if !lines.is_empty() {
            out += "\n# By macros.\n";
        }
        for line in lines {
            out += &format!("{line}\n");
        }
        out
    }
}

fn is_pub(vis: &Visibility) -> bool {
    matches!(vis, Visibility::Public(_))
}

/// Tests, pages of the documentation, and what it hides.
fn is_left_out(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|attr| {
        let Ok(list) = attr.meta.require_list() else { return false };
        let words = list.tokens.to_string().replace(' ', "");
        match attr.path().get_ident().map(ToString::to_string).as_deref() {
            Some("doc") => words == "hidden",
            Some("cfg") => {
                words == "test"
                    || words.starts_with("all(test")
                    || words.contains("doctest")
                    || ["loom", "shuttle", "fuzzing"].iter().any(|name| words.starts_with(name))
            }
            _ => false,
        }
    })
}

/// The features that an item needs, by its own `cfg`: `any(…)` of them is shown with "or".
fn feature(attrs: &[Attribute]) -> Option<String> {
    let cfgs = attrs.iter().filter(|attr| attr.path().is_ident("cfg"));
    cfgs.filter_map(|attr| {
        let words = attr.meta.require_list().ok()?.tokens.to_string().replace(' ', "");
        let named = words.split("feature=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        let named: Vec<_> = named.map(|name| format!("{name:?}")).collect();
        assert!(named.len() < 2 || words.starts_with("any("), "no words for cfg({words})");
        (!named.is_empty()).then(|| named.join(" or "))
    })
    .next()
}

/// The attributes that concern a caller.
fn marks(attrs: &[Attribute], text: &str) -> String {
    let mut marks = String::new();
    for attr in attrs {
        let name = attr.path().get_ident().map(ToString::to_string);
        match name.as_deref() {
            Some("must_use") => marks += "#[must_use] ",
            Some("non_exhaustive" | "derive" | "deprecated") => {
                marks += &format!("{} ", cut(text, attr.span()));
            }
            _ => {}
        }
    }
    marks
}

/// Public fields; those of a tuple in their order.
fn fields(fields: &Fields, text: &str, only_public: bool) -> Vec<String> {
    let shown = fields.iter().enumerate().filter(|(_, field)| !only_public || is_pub(&field.vis));
    shown
        .filter(|(_, field)| !is_left_out(&field.attrs))
        .map(|(at, field)| match &field.ident {
            Some(name) => format!("pub {name}: {}", cut(text, field.ty.span())),
            None => format!("pub {at}: {}", cut(text, field.ty.span())),
        })
        .collect()
}

fn last_name(path: &str) -> String {
    let path = path.split('<').next().unwrap();
    path.trim_start_matches('&').rsplit("::").next().unwrap().trim().to_owned()
}

fn cut(text: &str, span: Span) -> String {
    tidy(text.get(span.byte_range()).unwrap_or(""))
}

/// From one token up to another, excluding it.
fn slice(text: &str, from: Span, to: Span) -> String {
    tidy(&text[from.byte_range().start..to.byte_range().start])
}

fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap().to_owned() + "\n").collect()
}

/// On one line, without comments, as rustfmt writes a line.
fn tidy(text: &str) -> String {
    let words = without_comments(text);
    let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = line.replace("( ", "(").replace(", )", ")").replace(" )", ")").replace(", }", " }");
    line.replace("< ", "<").replace(", >", ">").trim_end_matches(',').to_owned()
}
