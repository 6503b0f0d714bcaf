//! How many times longer everything may take: emulated machines set it.

pub(crate) fn patience() -> u32 {
    std::env::var("TEST_PATIENCE").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1)
}
