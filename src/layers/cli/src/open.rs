//! Opens the store: the one place that says how.

use std::path::Path;

use onlyonce::{Policy, Store, StoreBuilder};

use crate::args::Common;
use crate::exit::{Failure, Result};

/// How a command needs the store.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Needs {
    /// Makes the store if there is none.
    pub(crate) create: bool,
    /// The longest result that is to be recorded.
    pub(crate) result_bytes: u32,
}

/// Opens the store, and returns the view of the namespace that was asked for.
pub(crate) fn open(common: &Common, needs: Needs) -> Result<Store> {
    let root = root(common, needs)?;
    Ok(common.namespace.iter().fold(root, |space, name| space.namespace(name)))
}

/// Opens the store, and returns the view of the whole store.
pub(crate) fn root(common: &Common, needs: Needs) -> Result<Store> {
    let dir = dir(common)?;
    let builder = builder(common, needs);
    let store = if needs.create { builder.open_or_create(dir) } else { builder.open(dir) };
    Ok(store?)
}

/// The store's directory.
pub(crate) fn dir(common: &Common) -> Result<&Path> {
    let none =
        || Failure::usage("which store? name its directory by --store DIR or in ONLYONCE_STORE");
    common.store.as_deref().ok_or_else(none)
}

fn builder(common: &Common, needs: Needs) -> StoreBuilder {
    let builder = Store::builder()
        .shared(true)
        .open_timeout(common.open_timeout)
        .allow_network_fs(common.allow_network_fs)
        .policy(Policy::new().owner(&owner()));
    if needs.result_bytes > RESULT_BYTES_DEFAULT {
        builder.result_bytes_max(needs.result_bytes)
    } else {
        builder
    }
}

/// The library's own limit, which is left as it is unless more is asked for.
const RESULT_BYTES_DEFAULT: u32 = 512 << 10;

/// The label of this process, by which others know whose a claim or a decision is.
fn owner() -> String {
    let system = rustix::system::uname();
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    let user = user.unwrap_or_else(|_| format!("uid {}", rustix::process::getuid().as_raw()));
    let host = system.nodename().to_string_lossy();
    format!("{user}@{host}, process {}", std::process::id())
}
