//! The programs, one family a file.

mod clock;
mod tc;

pub(crate) use tc::Passing;
