//! What answers the calls on a store's keys.

mod embedded;

pub(crate) use embedded::Shared;
