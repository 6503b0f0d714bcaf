//! What a load says without the rights. A process of its own: aya probes the kernel's features once, with the rights it finds.

use flow_agent::kernel::{Kernel, KernelConfig, LoadError};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

#[test]
fn a_load_without_rights_says_which_are_missing() {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    // This thread's alone.
    set_capabilities(None, none).expect("fewer are always allowed");
    let config = KernelConfig {
        max_flows: 16,
        max_interfaces: 1,
        ring_bytes: 4_096,
        pods: vec!["*".to_owned()],
        uplinks: Vec::new(),
        attachment: None,
    };
    let error = Kernel::load(&config, None).err().expect("not permitted");
    assert!(!matches!(error, LoadError::NoObject), "run `cargo xtask build-ebpf` before this test");
    assert!(matches!(error, LoadError::NotPermitted), "{error}");
    assert!(error.to_string().contains("CAP_BPF"), "{error}");
}
