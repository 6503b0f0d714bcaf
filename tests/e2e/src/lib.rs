//! The lab: two Nodes, their Pods, a router and hosts outside as network namespaces of their own, wired, addressed and
//! with Services as a cluster has them; the traffic programs; the ground truth; and the product running in it.
//!
//! `Lab::new()` gives all of it; dropping the lab, or the end of the process by whatever cause, takes all of it away.

mod cage;
pub mod cases;
pub mod expect;
pub mod joined;
mod lab;
mod manifests;
pub mod product;
pub mod report;
mod services;
pub mod stored;
pub mod topology;
pub mod traffic;
pub mod truth;
mod wiring;

pub use cage::{Cage, Namespace};
pub use interop::wait;
pub use lab::{Lab, Truth};
