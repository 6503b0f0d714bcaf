//! What the host lacks, told without an agent. Reads /proc and /sys; changes nothing.

use std::path::Path;

use super::judge::Finding;

/// Bits of CapEff in /proc/self/status (linux/capability.h).
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;

/// The first release with ring buffers, and so the oldest that the programs run on.
const OLDEST: (u32, u32) = (5, 8);

/// What would keep an agent from starting here.
pub fn host_findings() -> Vec<Finding> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    findings(release.trim(), Path::new("/sys/kernel/btf/vmlinux").exists(), capabilities(&status))
}

/// What this process may not do and an agent must: load kernel programs or, where it may do without them, at least read connection tracking.
pub fn missing_rights(needs_programs: bool) -> Option<Finding> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    capabilities(&status).filter(|held| needs_programs || held & CAP_NET_ADMIN == 0).and_then(rights)
}

fn findings(release: &str, btf: bool, capabilities: Option<u64>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if version(release).is_some_and(|version| version < OLDEST) {
        findings.push(Finding::new(
            format!("kernel {release} has no BPF ring buffers"),
            format!("use kernel {}.{} or later", OLDEST.0, OLDEST.1),
        ));
    }
    if !btf {
        findings.push(Finding::new(
            "this kernel does not describe its structures: /sys/kernel/btf/vmlinux is missing",
            "use a kernel that was built with CONFIG_DEBUG_INFO_BTF",
        ));
    }
    findings.extend(capabilities.and_then(rights));
    findings
}

/// What these capabilities lack.
fn rights(held: u64) -> Option<Finding> {
    let may_load = held & CAP_SYS_ADMIN != 0 || held & (CAP_BPF | CAP_PERFMON) == CAP_BPF | CAP_PERFMON;
    let lacks = !may_load || held & CAP_NET_ADMIN == 0;
    lacks.then(|| {
        Finding::new(
            "this user may not load and attach kernel programs",
            "run as root, or with the capabilities BPF, PERFMON and NET_ADMIN",
        )
    })
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_host_has_no_findings() {
        assert_eq!(findings("5.8.0-generic", true, Some(CAP_BPF | CAP_PERFMON | CAP_NET_ADMIN)), []);
        assert_eq!(findings("6.18.0", true, Some(u64::MAX)), []);
    }

    #[test]
    fn each_lack_has_its_remedy() {
        let said: Vec<String> = findings("5.4.210", false, Some(CAP_NET_ADMIN))
            .iter()
            .map(|f| format!("{}: {}", f.what, f.remedy))
            .collect();
        insta::assert_snapshot!(said.join("\n"));
    }

    #[test]
    fn effective_capabilities_are_read() {
        assert_eq!(capabilities("Name:\tx\nCapInh:\t0\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
        assert_eq!(capabilities("Name:\tx\n"), None);
    }
}
