//! Which interfaces are watched, and as what: patterns of names, and what a kind of interface demands.
//!
//! Pure: takes a [`Link`], gives a decision.

use super::Role;
use super::links::Link;

/// Patterns of names.
#[derive(Clone, Debug)]
pub(super) struct Roles {
    pods: Names,
    uplinks: Names,
}

/// What is to be done with an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// No pattern names it.
    Ignore,
    /// A pattern names it, but its other end is still in this namespace: programs would go into the Pod with it.
    Wait(Role),
    /// What stands before its IP headers is not known.
    Unknown(Role),
    /// Attach the programs for this role; `ethernet` tells which.
    Attach {
        /// What it is to the Node.
        role: Role,
        /// Whether an Ethernet header stands before the IP header; else nothing does.
        ethernet: bool,
    },
}

impl Roles {
    /// Of the configured lists.
    pub(super) fn new(pods: &[String], uplinks: &[String]) -> Self {
        Self { pods: Names::new(pods), uplinks: Names::new(uplinks) }
    }

    /// What is to be done with an interface.
    pub(super) fn decide(&self, link: &Link) -> Decision {
        let role = match () {
            () if self.uplinks.contain(&link.name) => Role::Uplink,
            () if self.pods.contain(&link.name) => Role::Pod,
            () => return Decision::Ignore,
        };
        if matches!(link.kind.as_str(), "veth" | "netkit") && !link.peer_elsewhere {
            return Decision::Wait(role);
        }
        match ethernet(link.layer) {
            Some(ethernet) => Decision::Attach { role, ethernet },
            None => Decision::Unknown(role),
        }
    }
}

/// By ARPHRD number: whether there is an Ethernet header; none where it is neither so nor nothing.
fn ethernet(layer: u16) -> Option<bool> {
    match layer {
        // ETHER, LOOPBACK
        1 | 772 => Some(true),
        // PPP, RAWIP, TUNNEL, TUNNEL6, SIT, IPGRE, IP6GRE, NONE
        512 | 519 | 768 | 769 | 776 | 778 | 823 | 0xfffe => Some(false),
        _ => None,
    }
}

/// Globs with exceptions.
#[derive(Clone, Debug)]
struct Names {
    wanted: Vec<String>,
    unwanted: Vec<String>,
}

impl Names {
    fn new(patterns: &[String]) -> Self {
        let (unwanted, wanted): (Vec<_>, Vec<_>) = patterns.iter().partition(|pattern| pattern.starts_with('!'));
        let unwanted = unwanted.iter().map(|pattern| pattern.trim_start_matches('!').to_owned());
        Self { wanted: wanted.into_iter().cloned().collect(), unwanted: unwanted.collect() }
    }

    fn contain(&self, name: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern.as_bytes(), name.as_bytes()));
        any(&self.wanted) && !any(&self.unwanted)
    }
}

/// `*` is any run of characters, `?` any one.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=name.len()).any(|skip| matches(rest, name.get(skip..).unwrap_or_default())),
        (Some((b'?', rest)), Some((_, tail))) => matches(rest, tail),
        (Some((wanted, rest)), Some((byte, tail))) => wanted == byte && matches(rest, tail),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(name: &str, kind: &str, peer_elsewhere: bool, layer: u16) -> Decision {
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let roles = Roles::new(&list(&["veth*", "cali?*", "!veth-gw*"]), &list(&["eth*", "veth-up"]));
        roles.decide(&Link { name: name.into(), kind: kind.into(), peer_elsewhere, layer, ..Link::default() })
    }

    #[test]
    fn by_default_each_of_the_common_names_has_its_role() {
        let crate::config::Config { pods, uplinks, .. } = crate::config::Config::default();
        let roles = Roles::new(&pods, &uplinks);
        let role = |name: &str| match roles.decide(&Link { name: name.into(), layer: 1, ..Link::default() }) {
            Decision::Attach { role, .. } => Some(role),
            _ => None,
        };
        for name in
            ["veth1a2b3c4d", "cali1a2b3c4d5e6", "lxc1a2b3c", "eni1a2b3c4d5e6", "gke1a2b3c4d5e6", "azv1a2b3c4d5e6"]
        {
            assert_eq!(role(name), Some(Role::Pod), "{name}");
        }
        for name in ["eth0", "eno1", "ens5", "enp0s31f6", "enx001122334455", "bond0", "wlp3s0"] {
            assert_eq!(role(name), Some(Role::Uplink), "{name}");
        }
    }

    #[test]
    fn names_and_kinds_decide() {
        let attach = |role, ethernet| Decision::Attach { role, ethernet };
        assert_eq!(decide("veth1a2b", "veth", true, 1), attach(Role::Pod, true));
        assert_eq!(decide("veth1a2b", "veth", false, 1), Decision::Wait(Role::Pod), "its peer may still move");
        assert_eq!(decide("veth-up", "veth", true, 1), attach(Role::Uplink, true), "uplinks win");
        assert_eq!(decide("veth-gw0", "veth", true, 1), Decision::Ignore, "excluded");
        assert_eq!(decide("cali", "veth", true, 1), Decision::Ignore, "? is one character");
        assert_eq!(decide("eth0", "", false, 1), attach(Role::Uplink, true));
        assert_eq!(decide("eth1", "", false, 0xfffe), attach(Role::Uplink, false));
        assert_eq!(decide("eth2", "", false, 32), Decision::Unknown(Role::Uplink), "InfiniBand");
        assert_eq!(decide("docker0", "bridge", false, 1), Decision::Ignore);
    }
}
