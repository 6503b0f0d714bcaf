//! What records do to the table, in simulated time.

mod bounds;
mod cluster;
mod correlation;
mod laws;
mod life;
mod losses;
mod proxy;
mod totals;
