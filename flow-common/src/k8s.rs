//! What is known of a cluster's objects: which Pod had an address at a time, which Service an address and port stand
//! for.
//!
//! Takes reduced objects (from the folder of manifests, or from a watch of the API server) and the time of each
//! change; answers look-ups without I/O, a clock or a lock. Evaluates no policies, resolves no names.

mod claims;
pub mod folder;
mod index;
pub mod manifest;
mod object;
mod reduce;
mod tenure;

pub use folder::{Folder, FolderError, Look};
pub use index::{Index, ServicePort, Statistics};
pub use object::{
    Change, EndpointSlice, Kind, Labels, NamedPort, Namespace, Node, Object, ObjectRef, Phase, Pod, Port, Service,
    ServiceType, TransportProtocol,
};
pub use reduce::{Strings, ValueError};
