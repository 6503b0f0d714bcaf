//! What both programs' command lines share: flags that become filters, numbers and tables as people read them.

pub mod filters;
pub mod text;
