//! Page faults of the agent: taken before it says that it is ready, not while somebody waits.
//!
//! On a host without virtualization hardware a fault costs a millisecond. A template that is saved
//! after [`warm_up`] has them behind it.

use std::ffi::c_void;
use std::hint::black_box;

/// Heap that is there before it is needed.
const HEAP: usize = 48 << 10;
/// Stack that is there before it is needed.
const STACK: usize = 24 << 10;
const PAGE: usize = 4096;
/// The kernel maps what it has of a file in a window of this size around a fault
/// (`fault_around_bytes`).
const FAULT_AROUND: usize = 64 << 10;

/// Keeps freed memory in the heap instead of giving it back page by page.
pub(crate) fn tune_allocator() {
    const LARGE: i32 = 1 << 30;
    // SAFETY: mallopt reads numbers only, and no other thread allocates at this time.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10);
    }
}

/// Makes the kernel map what the agent will touch: its program, its data, some heap and stack.
pub(crate) fn warm_up() {
    // SAFETY: the callback reads only what dl_iterate_phdr passes to it.
    unsafe { libc::dl_iterate_phdr(Some(populate_segments), std::ptr::null_mut()) };
    // Freed at once: it stays in the heap, see tune_allocator.
    let mut heap = Vec::<u8>::with_capacity(HEAP);
    for (index, byte) in heap.spare_capacity_mut().iter_mut().enumerate() {
        if index % PAGE == 0 {
            byte.write(0);
        }
    }
    black_box(&mut heap);
    warm_stack();
}

#[inline(never)]
fn warm_stack() {
    let mut stack = [const { std::mem::MaybeUninit::<u8>::uninit() }; STACK];
    for byte in stack.iter_mut().step_by(PAGE) {
        byte.write(0);
    }
    black_box(&mut stack);
}

unsafe extern "C" fn populate_segments(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut c_void,
) -> i32 {
    // SAFETY: libc passes a valid description, with dlpi_phnum program headers at dlpi_phdr.
    let (info, headers) = unsafe {
        let info = &*info;
        let count = usize::from(info.dlpi_phnum);
        (info, std::slice::from_raw_parts(info.dlpi_phdr, count))
    };
    for header in headers {
        let begin = usize::try_from(info.dlpi_addr + header.p_vaddr);
        let (Ok(begin), Ok(size)) = (begin, usize::try_from(header.p_memsz)) else {
            continue;
        };
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_R == 0 || size == 0 {
            continue;
        }
        if header.p_flags & libc::PF_W == 0 {
            let windows = (begin..begin + size).step_by(FAULT_AROUND);
            for address in windows.chain([begin + size - 1]) {
                // SAFETY: the address lies in a segment that is mapped readable.
                black_box(unsafe { (address as *const u8).read_volatile() });
            }
        } else {
            let start = begin & !(PAGE - 1);
            let length = begin + size - start;
            // Failure, say of a kernel that does not know this, leaves the faults for later.
            // SAFETY: populating pages changes no content of the memory.
            unsafe { libc::madvise(start as *mut c_void, length, libc::MADV_POPULATE_WRITE) };
        }
    }
    0
}
