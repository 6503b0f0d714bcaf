//! Names of this namespace's interfaces by their index, whether or not a pattern names them.

use std::collections::HashMap;

use crate::kernel::links::name;

/// What an interface is called that is no more.
pub(super) const GONE: &str = "gone";

/// Names as they were first asked for.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<u32, String>);

impl Names {
    /// An interface's name; empty for none, [`GONE`] where it is no more.
    pub(super) fn of(&mut self, index: u32) -> String {
        if index == 0 {
            return String::new();
        }
        self.0.entry(index).or_insert_with(|| name(index).unwrap_or_else(|| GONE.to_owned())).clone()
    }
}
