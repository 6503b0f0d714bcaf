//! Becomes a ClickHouse server: `clickhouse FILE ARGUMENT..`. FILE is a program, or the library libchdb.so, which is
//! ClickHouse's own `clickhouse-local` with every part of the server in it. With CLICKHOUSE_END_WITH_PARENT in its environment
//! it ends when the thread that started it does.

use std::ffi::{CString, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, set_parent_process_death_signal};

/// Takes what `main` of C takes.
type Main = unsafe extern "C" fn(c_int, *mut *mut c_char) -> *mut c_void;

fn main() -> Result<()> {
    if std::env::var_os("CLICKHOUSE_END_WITH_PARENT").is_some() {
        set_parent_process_death_signal(Some(Signal::KILL))?;
    }
    let mut arguments = std::env::args_os().skip(1);
    let file = arguments.next().context("which server?")?;
    if !file.as_encoded_bytes().ends_with(b".so") {
        return Err(Command::new(&file).args(arguments).exec())
            .with_context(|| format!("cannot start {}", file.display()));
    }
    let own = ["clickhouse"].map(OsStr::new).map(OsStr::to_owned);
    let arguments = own.into_iter().chain(arguments).map(|argument| CString::new(argument.into_vec()));
    let mut arguments: Vec<*mut c_char> =
        arguments.map(|argument| argument.map(CString::into_raw)).collect::<Result<_, _>>()?;
    let path = CString::new(file.into_vec())?;
    // SAFETY: the library is loaded once and stays; its function has this signature and returns when the server ends.
    unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        ensure!(!library.is_null(), "cannot load {}", path.to_string_lossy());
        let function = libc::dlsym(library, c"query_stable_v2".as_ptr());
        ensure!(!function.is_null(), "{} is not the library that is known", path.to_string_lossy());
        std::mem::transmute::<*mut c_void, Main>(function)(c_int::try_from(arguments.len())?, arguments.as_mut_ptr());
    }
    Ok(())
}
