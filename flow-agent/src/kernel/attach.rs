//! Puts programs on hooks: a TCX link at the head of the chain, or a filter of a clsact qdisc below kernel 6.6.
//!
//! Takes the programs and an interface; gives [`Hooks`], which leave the interface when they are dropped (TCX) or detached, unless
//! there are [`Pins`], which keep them for the next agent.

use super::filters;
use super::links::{self, Link};
use super::load::{PROGRAMS, program};
use super::pins::Pins;
use super::syscall::{self, TcxHook};
use super::{Attachment, LoadError, Role};
use aya::Ebpf;
use aya::programs::tc::{self, NlOptions, TcAttachOptions, TcAttachType, TcHandle};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

/// The lowest number is the first to run.
const PRIORITY: u16 = 1;
/// Fixed, so that a filter that outlived an agent is found and replaced.
const HANDLE: u32 = 0xf10;

/// The programs of one interface, attached.
pub(super) struct Hooks {
    programs: [&'static str; 2],
    ids: [u32; 2],
    links: Links,
}

enum Links {
    /// Open file descriptors; closing them detaches.
    Tcx { fds: [OwnedFd; 2] },
    /// The interface's index, because its name may change: filters stay until they are removed by their programs' names.
    Clsact(u32),
    /// On the way to the head.
    Left,
}

/// Why an interface is not attached.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttachError {
    #[error("the kernel has neither TCX nor clsact: it needs CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF")]
    NoTc,
    #[error("not permitted: attaching needs CAP_NET_ADMIN")]
    NotPermitted,
    #[error("the kernel refused: {0}")]
    Refused(#[from] io::Error),
    #[error("{0}")]
    Programs(#[from] LoadError),
    #[error("{0}")]
    Clsact(String),
}

const TC_HOOKS: [TcAttachType; 2] = [TcAttachType::Ingress, TcAttachType::Egress];

impl Hooks {
    /// Attaches both hooks of an interface, in the wanted way or in the best one there is.
    pub(super) fn attach(
        programs: &mut Ebpf,
        link: &Link,
        (role, ethernet): (Role, bool),
        wanted: Option<Attachment>,
        pins: Option<&Pins>,
    ) -> Result<Self, AttachError> {
        let names = names(role, ethernet);
        let ids = [program_id(programs, names[0])?, program_id(programs, names[1])?];
        let links = match wanted {
            Some(Attachment::Clsact) => clsact(programs, names, link)?,
            _ => match to_head(programs, names, link.index, pins) {
                // The command is not known below 6.6.
                Err(AttachError::Refused(error)) if wanted.is_none() && error.raw_os_error() == Some(libc::EINVAL) => {
                    clsact(programs, names, link)?
                }
                fds => Links::Tcx { fds: fds? },
            },
        };
        Ok(Self { programs: names, ids, links })
    }

    /// Goes on where an agent before has left its programs: from one packet to the next these are ours. None if it left none there.
    pub(super) fn take_over(
        programs: &mut Ebpf,
        link: &Link,
        (role, ethernet): (Role, bool),
        pins: &Pins,
    ) -> Result<Option<Self>, AttachError> {
        let names = names(role, ethernet);
        let ids = [program_id(programs, names[0])?, program_id(programs, names[1])?];
        let [Some(ingress), Some(egress)] = TcxHook::BOTH.map(|hook| pins.link(link.index, hook)) else {
            return Ok(None);
        };
        let fds = [ingress, egress];
        for ((name, hook), fd) in names.into_iter().zip(TcxHook::BOTH).zip(&fds) {
            let program = program(programs, name)?.fd().map_err(|error| LoadError::Other(error.into()))?;
            syscall::link_update(fd.as_fd(), program.as_fd()).map_err(permitted)?;
            pins.keep_link(link.index, hook, fd.as_fd()).map_err(permitted)?;
        }
        Ok(Some(Self { programs: names, ids, links: Links::Tcx { fds } }))
    }

    /// How they are attached.
    pub(super) fn attachment(&self) -> Attachment {
        match self.links {
            Links::Tcx { .. } | Links::Left => Attachment::Tcx,
            Links::Clsact(_) => Attachment::Clsact,
        }
    }

    /// Whether the interface that they were attached to is no more, whatever has its index by now. Filters do not tell.
    pub(super) fn are_dead(&self, index: u32) -> bool {
        let Links::Tcx { fds } = &self.links else { return false };
        fds.iter().any(|fd| syscall::link_interface(fd.as_fd()).is_ok_and(|there| there != index))
    }

    /// Whether another program has come before one of them, or a filter of theirs is there no more.
    pub(super) fn is_overtaken(&self, index: u32) -> bool {
        match self.links {
            Links::Tcx { .. } => {
                // A chain that cannot be read is one that has gone.
                let head = |hook| syscall::tcx_head(index, hook).ok().flatten();
                self.ids.iter().zip(TcxHook::BOTH).any(|(own, hook)| head(hook).is_some_and(|head| head != *own))
            }
            Links::Clsact(_) => {
                filters::programs(index, PRIORITY, HANDLE).is_ok_and(|there| there != self.ids.map(Some))
            }
            Links::Left => false,
        }
    }

    /// Leaves the chains and joins them at their heads, or puts the filters there again. A chain does not take a program twice, so for
    /// some microseconds packets pass unseen.
    pub(super) fn lead_again(
        &mut self,
        programs: &mut Ebpf,
        link: &Link,
        pins: Option<&Pins>,
    ) -> Result<(), AttachError> {
        self.links = match std::mem::replace(&mut self.links, Links::Left) {
            Links::Clsact(_) => clsact(programs, self.programs, link)?,
            left => {
                if let Some(pins) = pins {
                    pins.forget_links(link.index);
                }
                drop(left);
                Links::Tcx { fds: to_head(programs, self.programs, link.index, pins)? }
            }
        };
        Ok(())
    }

    /// Leaves the interface.
    pub(super) fn detach(self) {
        if let Links::Clsact(index) = self.links
            && let Some(interface) = links::name(index)
        {
            remove(&interface, &self.programs);
        }
    }
}

fn names(role: Role, ethernet: bool) -> [&'static str; 2] {
    match (role, ethernet) {
        (Role::Pod, true) => ["pod_ingress", "pod_egress"],
        (Role::Uplink, true) => ["uplink_ingress", "uplink_egress"],
        (Role::Pod, false) => ["pod_ingress_l3", "pod_egress_l3"],
        (Role::Uplink, false) => ["uplink_ingress_l3", "uplink_egress_l3"],
    }
}

fn program_id(programs: &mut Ebpf, name: &'static str) -> Result<u32, AttachError> {
    let info = program(programs, name)?.info().map_err(|error| LoadError::Other(error.into()))?;
    Ok(info.id())
}

/// Below 6.6, by netlink. Filters of an agent that was killed are still there and would count everything twice.
fn clsact(programs: &mut Ebpf, names: [&'static str; 2], link: &Link) -> Result<Links, AttachError> {
    let interface = link.name.as_str();
    remove_leftovers(interface);
    // It may be there already, for a CNI's programs.
    let _ = tc::qdisc_add_clsact(interface);
    for (name, hook) in names.into_iter().zip(TC_HOOKS) {
        let options = NlOptions { priority: PRIORITY, handle: TcHandle::from(HANDLE), classid: None };
        let program = program(programs, name)?;
        let attached = program
            .attach_with_options(interface, hook, TcAttachOptions::Netlink(options))
            .and_then(|id| program.take_link(id));
        match attached {
            // Dropped, it would remove the filter.
            Ok(link) => std::mem::forget(link),
            Err(error) => {
                remove(interface, &names);
                return Err(clsact_error(&error));
            }
        }
    }
    Ok(Links::Clsact(link.index))
}

/// Removes the filters of these programs.
fn remove(interface: &str, names: &[&str]) {
    for hook in TC_HOOKS {
        for name in names {
            // Not found is what it should be; and an interface that has gone took them along.
            let _ = tc::qdisc_detach_program(interface, hook, name);
        }
    }
}

fn to_head(
    programs: &mut Ebpf,
    names: [&'static str; 2],
    index: u32,
    pins: Option<&Pins>,
) -> Result<[OwnedFd; 2], AttachError> {
    let mut open = |name: &'static str, hook: TcxHook| -> Result<OwnedFd, AttachError> {
        let program = program(programs, name)?.fd().map_err(|error| LoadError::Other(error.into()))?;
        let link = syscall::tcx_attach(program.as_fd(), index, hook).map_err(permitted)?;
        if let Some(pins) = pins {
            pins.keep_link(index, hook, link.as_fd()).map_err(permitted)?;
        }
        Ok(link)
    };
    let [ingress, egress] = names;
    Ok([open(ingress, TcxHook::Ingress)?, open(egress, TcxHook::Egress)?])
}

fn permitted(error: io::Error) -> AttachError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => AttachError::NotPermitted,
        _ => AttachError::Refused(error),
    }
}

fn clsact_error(error: &aya::programs::ProgramError) -> AttachError {
    use std::error::Error as _;
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    match () {
        () if cause.contains("not supported") || cause.contains("No such file") => AttachError::NoTc,
        () if cause.contains("not permitted") => AttachError::NotPermitted,
        () => AttachError::Clsact(format!("{error}: {cause}")),
    }
}

/// Removes our filters, whoever left them.
pub(super) fn remove_leftovers(interface: &str) {
    remove(interface, &PROGRAMS);
}
