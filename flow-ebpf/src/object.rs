//! What every object for the kernel has: its licence, and an end for panics that no program may reach.

// What the kernel reads to decide which helpers a program may call.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

// `cargo xtask build-ebpf` refuses an object in which this is left.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
