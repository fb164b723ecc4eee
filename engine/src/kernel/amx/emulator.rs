//! AMX on processors without it, for the tests: whoever meets one of its instructions gets SIGILL, and
//! the handler does what the instruction would have done, as Intel's manual specifies it (volume 2,
//! "Intel AMX Instruction Set Reference"). Each thread has its tiles, as it has its registers.
//!
//! | module | what it does |
//! |---|---|
//! | [`decode`] | from bytes to an instruction and addresses |
//! | [`tiles`] | what instructions do to the tiles of a thread |
//!
//! What the manual calls an exception (a tile that is not configured, shapes that do not fit) ends the
//! process, as it would on a real processor. Any other illegal instruction does so too.

mod decode;
mod tiles;

use std::cell::UnsafeCell;
use std::sync::Once;

use self::decode::Register;
use self::tiles::Tiles;

thread_local! {
    /// Without a destructor, so that a handler of signals may use it.
    static TILES: UnsafeCell<Tiles> = const { UnsafeCell::new(Tiles::RELEASED) };
}

/// Lets this process run AMX from now on.
#[allow(unsafe_code, reason = "there is no safe way to a handler of signals")]
pub(super) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = handle;
        // SAFETY: all zeros are a valid `sigaction`, with an empty mask. The handler has the form that
        // SA_SIGINFO asks for, and uses nothing that a signal could find half changed: illegal
        // instructions come from assembly alone, never from within the handler.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut())
        };
        assert_eq!(result, 0, "SIGILL can be handled");
    });
}

#[allow(unsafe_code, reason = "the system hands over pointers, and the program's are followed")]
extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the last argument is the context that was interrupted, which nobody else
    // has.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let value = |register: Register| registers[register.place()].cast_unsigned();
    let start = value(Register::RIP);
    // SAFETY: the processor has read an instruction there. The longest of AMX is 11 bytes, and no
    // program ends with it: this binary's text goes on for longer than that.
    let bytes = unsafe { &*std::ptr::with_exposed_provenance::<[u8; 11]>(start_address(start)) };
    let Some((instruction, length)) = decode::decode(bytes, value) else {
        // Not ours: the instruction is met again, and then ends the process.
        // SAFETY: to give a signal back to the system needs nothing.
        unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
        return;
    };
    // SAFETY: this thread's tiles, in its only handler that uses them; memory is what the program
    // names as the operand of its instruction, and it has promised that it may be read or written.
    let done = TILES.with(|tiles| unsafe { (*tiles.get()).execute(instruction) });
    if done.is_none() {
        const WHY: &[u8] = b"an instruction of AMX met tiles of other shapes, or none\n";
        // SAFETY: the bytes are there to be written, and to end the process needs nothing. Both may be
        // done in a handler of signals.
        unsafe {
            libc::write(libc::STDERR_FILENO, WHY.as_ptr().cast(), WHY.len());
            libc::abort()
        };
    }
    registers[Register::RIP.place()] += length;
}

/// How many products of tiles this thread has emulated.
#[allow(unsafe_code, reason = "the handler of signals needs a cell without checks")]
pub(super) fn products_done() -> usize {
    // SAFETY: no instruction of AMX, and so no handler, runs meanwhile in this thread.
    TILES.with(|tiles| unsafe { (*tiles.get()).products_done() })
}

/// The address in a register of 64 bits, which is as large as a pointer here.
fn start_address(value: u64) -> usize {
    usize::from_le_bytes(value.to_le_bytes())
}
