//! The rungs: for each kind of event and each way to attach, which programs go to which functions; and what a refusal means.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use super::calls::{self, Form, Refusal};
use super::object::Programs;
use super::symbols::Symbols;
use super::{MODULE, Rung, Standing, words};
use crate::kernel::btf::Btf;
use crate::kernel::syscall;

/// A program at a function; the link goes first.
pub(super) struct Hook {
    link: OwnedFd,
    program: OwnedFd,
    rung: Rung,
}

impl Hook {
    /// Events that the kernel did not run the program for, as far as it counts them.
    pub(super) fn missed(&self) -> u64 {
        let runs = syscall::missed_runs(self.program.as_fd()).unwrap_or_default();
        let calls = if self.rung == Rung::KprobeMulti { syscall::missed_calls(self.link.as_fd()) } else { Ok(0) };
        runs + calls.unwrap_or_default()
    }
}

/// What programs are attached with.
pub(super) struct Ground<'a> {
    pub(super) programs: &'a Programs,
    pub(super) btf: &'a Btf,
    pub(super) symbols: &'a Symbols,
}

/// The programs for one function on each rung.
#[derive(Clone, Copy)]
pub(super) struct Place {
    function: &'static str,
    /// Program at its entry or exit, and whether it is the exit.
    tracing: (&'static str, bool),
    /// Program at its call.
    call: &'static str,
    /// Program at its return, where one is needed.
    on_return: Option<&'static str>,
    /// Whether the function tells of every event on this kernel.
    serves: fn(&Symbols) -> bool,
}

/// Where connections begin.
pub(super) const NEW: &[Place] = &[Place {
    function: "__nf_conntrack_confirm",
    tracing: ("confirm_exit", true),
    call: "confirm_call",
    on_return: Some("confirm_return"),
    serves: |_| true,
}];

/// Where they end, the earliest first. The functions that free them serve where a part of `nf_ct_delete` was made a function that
/// the kernel's own collection of garbage calls; which of them it is depends on the version. Below 5.18 the kernel's own one
/// is in its types while the module's are not.
pub(super) const END: &[Place] = &[
    Place {
        function: "nf_ct_delete",
        tracing: ("delete_exit", true),
        call: "delete_call",
        on_return: None,
        serves: |symbols| !symbols.delete_is_split,
    },
    Place {
        function: "nf_ct_destroy",
        tracing: ("destroy_entry", false),
        call: "destroy_call",
        on_return: None,
        serves: |symbols| symbols.destroy,
    },
    Place {
        function: "nf_conntrack_destroy",
        tracing: ("destroy_entry", false),
        call: "destroy_call",
        on_return: None,
        serves: |symbols| !symbols.destroy,
    },
];

impl Ground<'_> {
    /// Attaches to the first place on the first rung that the kernel takes.
    pub(super) fn stand(&self, rungs: impl Iterator<Item = Rung>, places: &[Place]) -> (Standing, Vec<Hook>) {
        let mut refused = Vec::new();
        for rung in rungs {
            let mut sentences = Vec::new();
            for place in places.iter().filter(|place| (place.serves)(self.symbols)) {
                match self.attach(rung, place) {
                    Ok(hooks) => return (Standing { on: Some((rung, place.function)), refused }, hooks),
                    Err(sentence) => sentences.push(sentence),
                }
            }
            // What stands in the way of the best place is what can be helped.
            let sentence = sentences.into_iter().next().unwrap_or_else(|| "no function serves".to_owned());
            refused.push(format!("{}: {sentence}", rung.name()));
        }
        (Standing { on: None, refused }, Vec::new())
    }

    fn attach(&self, rung: Rung, place: &Place) -> Result<Vec<Hook>, String> {
        if rung == Rung::Tracing {
            return self.trace(place).map(|hook| vec![hook]);
        }
        // The return first: a call without it would leave its mark behind.
        let programs = place.on_return.map(|program| (program, true)).into_iter().chain([(place.call, false)]);
        programs.map(|(program, on_return)| self.probe(rung, program, place.function, on_return)).collect()
    }

    fn trace(&self, place: &Place) -> Result<Hook, String> {
        let function = self.btf.function(place.function);
        let function = function.ok_or_else(|| {
            format!("the kernel's types lack {}: they must have the module's, as from 5.11 on", place.function)
        })?;
        let module = if function.of_module { Some(calls::module_types(MODULE).map_err(module_types)?) } else { None };
        let (name, exit) = place.tracing;
        let form = Form::Tracing { exit, function: function.id, module: module.as_ref().map(OwnedFd::as_fd) };
        let program = self.programs.load(name, &form).map_err(|refusal| load(&refusal, place.function))?;
        let link = calls::attach_tracing(program.as_fd())
            .map_err(|error| format!("attaching to {}: {}", place.function, words(&error)))?;
        Ok(Hook { link, program, rung: Rung::Tracing })
    }

    fn probe(&self, rung: Rung, name: &'static str, function: &str, on_return: bool) -> Result<Hook, String> {
        let multi = rung == Rung::KprobeMulti;
        let form = if multi { Form::KprobeMulti } else { Form::Kprobe };
        let program = self.programs.load(name, &form).map_err(|refusal| load(&refusal, function))?;
        let link = if multi {
            calls::attach_kprobe_multi(program.as_fd(), function, on_return)
                .map_err(|error| probe_multi(&error, function))?
        } else {
            calls::attach_kprobe(program.as_fd(), function, on_return).map_err(|error| probe(&error, function))?
        };
        Ok(Hook { link, program, rung })
    }
}

fn module_types(error: io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => format!("not permitted to take the types of {MODULE}: this takes CAP_SYS_ADMIN"),
        Some(libc::ENOENT) => format!("the kernel holds no types of {MODULE}"),
        _ => format!("the types of {MODULE}: {}", words(&error)),
    }
}

/// A refusal without words of the verifier's is one of rights or of the kernel's configuration.
fn load(refusal: &Refusal, function: &str) -> String {
    let last = refusal.log.lines().map(str::trim).rfind(|line| !line.is_empty() && !line.starts_with("processed "));
    match (refusal.error.raw_os_error(), last) {
        (_, Some(line)) => format!("the program for {function} is refused ({}): {line}", words(&refusal.error)),
        (Some(libc::EPERM | libc::EACCES), None) => {
            format!(
                "not permitted to load the program for {function}: this takes CAP_BPF and CAP_PERFMON, on a kernel that has it and is not locked down"
            )
        }
        (_, None) => format!("the program for {function} is refused: {}", words(&refusal.error)),
    }
}

fn probe_multi(error: &io::Error, function: &str) -> String {
    match error.raw_os_error() {
        Some(libc::EINVAL) => "this kernel has no links on kprobes: it is older than 5.18".to_owned(),
        Some(libc::EOPNOTSUPP) => "this kernel has no links on kprobes: it needs CONFIG_FPROBE".to_owned(),
        _ => format!("a link on {function}: {}", words(error)),
    }
}

fn probe(error: &io::Error, function: &str) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) if !std::path::Path::new("/sys/bus/event_source/devices/kprobe").exists() => {
            "this kernel has no kprobes: it needs CONFIG_KPROBE_EVENTS".to_owned()
        }
        Some(libc::EPERM | libc::EACCES) => format!(
            "not permitted to probe {function}: this takes CAP_SYS_ADMIN, or CAP_PERFMON where kernel.perf_event_paranoid is 2 \
             or less, on a kernel that is not locked down"
        ),
        _ => format!("a kprobe on {function}: {}", words(error)),
    }
}
