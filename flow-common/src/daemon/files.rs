//! How many files and sockets the process may have open (RLIMIT_NOFILE).
//!
//! Takes how many a program may need; raises the limit to what the system allows, and warns where that is less. What
//! shells and services begin with is 1,024 mostly, for the sake of programs that wait by `select`: ours do not.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit. `need` is what may be open at one time, `of` what for, and `remedy` what to do beside raising the
/// hard limit where that is too low.
pub fn allow_open_files(need: u64, of: &str, remedy: &str) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::debug!("the limit of open files stays at {current:?}: {error}");
            current
        }
    };
    if let Some(limit) = limit.filter(|limit| *limit < need) {
        tracing::warn!(
            "this process may have {limit} files and sockets open, and {of} may need {need}: raise the hard limit \
             (`ulimit -Hn`, LimitNOFILE= of a systemd unit, or what the container runtime gives), or {remedy}"
        );
    }
}
