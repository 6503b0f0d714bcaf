//! What the agent, the aggregator and the kernel programs share.
