//! Header parsing and TCP state of the kernel programs, testable on the host.
