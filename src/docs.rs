//! The pages of `docs/` as modules, so that their programs run with the tests and their links are checked.
//!
//! Start with the programs in [`recipes`]; [`operations`] explains how to run a store, and [`cli`] the command line.
//! [`protocol`] and [`durability`] define what is promised, [`sizing`] and [`performance`] say what it costs, and
//! [`mod@format`] describes every byte. The other pages are for maintainers.

/// A page names other pages by reference, as `[sizing.md][sizing]`, and says at its end where they are on the disk. These
/// definitions come first, and the first definition of a name counts: so here the same names lead to modules.
macro_rules! links {
    () => {
        "[architecture]: crate::docs::architecture\n\
         [changelog]: crate::docs::changelog\n\
         [cli]: crate::docs::cli\n\
         [contributing]: crate::docs::contributing\n\
         [design]: crate::docs::design\n\
         [durability]: crate::docs::durability\n\
         [format]: crate::docs::format\n\
         [operations]: crate::docs::operations\n\
         [performance]: crate::docs::performance\n\
         [processes]: crate::docs::processes\n\
         [protocol]: crate::docs::protocol\n\
         [recipes]: crate::docs::recipes\n\
         [sizing]: crate::docs::sizing\n\n"
    };
}

macro_rules! pages {
    ($($name:ident)*) => {
        $(
            #[doc = concat!(links!(), include_str!(concat!("../docs/", stringify!($name), ".md")))]
            pub mod $name {}
        )*
    };
}

pages! {
    recipes operations processes protocol durability sizing performance format
    cli changelog architecture design contributing
}
