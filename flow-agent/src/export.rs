//! Export of records to the collector.

pub mod spool;
