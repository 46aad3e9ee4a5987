//! vCPUs and their threads.
//!
//! A vCPU thread begins paused, so that a booted VM and a restored one meet at the same point. It
//! handles its exits itself; nobody else touches the vCPU while it runs, and while it is paused
//! its state can be saved.

use std::{
    fmt::Write as _,
    io,
    os::raw::c_int,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use kvm_bindings::{
    CpuId, KVM_MP_STATE_RUNNABLE, Msrs, kvm_cpuid_entry2, kvm_fpu, kvm_lapic_state, kvm_msr_entry,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::GuestAddress;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::{
    arch::{
        cpuid, long_mode,
        vcpu_state::{self, MSR_IA32_TSC, StateError, VcpuState},
    },
    end::End,
    exit::ExitReason,
    ports::Ports,
    profile::Profile,
    virtio_mmio::VirtioMmioBus,
};

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs enabled, write-back by default.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
const FPU_CONTROL: u16 = 0x37f;
const MXCSR: u32 = 0x1f80;
const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
const APIC_MODE_EXTINT: u32 = 7 << 8;
const APIC_MODE_NMI: u32 = 4 << 8;

/// How often a thread that is inside KVM is asked again to come out.
const KICK_INTERVAL: Duration = Duration::from_millis(1);

/// Failure to make or prepare a vCPU.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// A KVM call failed.
    #[error("Failed to {call} on vCPU {id}")]
    Kvm {
        /// The call.
        call: &'static str,
        /// Number of the vCPU.
        id: u8,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// Its state could not be saved or restored.
    #[error("Failed to save or restore vCPU {id}")]
    State {
        /// Number of the vCPU.
        id: u8,
        /// Why.
        source: StateError,
    },
    /// The signal that interrupts vCPUs could not be set up.
    #[error("Failed to install the handler of the signal that interrupts vCPUs")]
    Signal(#[source] vmm_sys_util::errno::Error),
    /// The thread could not be made.
    #[error("Failed to start the thread of vCPU {id}")]
    Thread {
        /// Number of the vCPU.
        id: u8,
        /// Why.
        source: io::Error,
    },
}

/// A vCPU that no thread runs yet.
pub struct Vcpu {
    id: u8,
    fd: VcpuFd,
    cpuid: CpuId,
}

impl Vcpu {
    /// Makes vCPU `id` of at most `vcpus`.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub fn new(kvm: &Kvm, vm: &VmFd, id: u8, vcpus: u8) -> Result<Self, VcpuError> {
        let failed = |call| move |source| VcpuError::Kvm { call, id, source };
        let fd = vm
            .create_vcpu(u64::from(id))
            .map_err(failed("KVM_CREATE_VCPU"))?;
        let mut cpuid = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        cpuid::adapt(&mut cpuid, id, vcpus);
        fd.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
        Ok(Self { id, fd, cpuid })
    }

    /// What CPUID says to the guest on this vCPU.
    #[must_use]
    pub fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        self.cpuid.as_slice()
    }

    /// Lets the vCPU go on where another one with the same CPUID stood still.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub fn restore(&self, state: &VcpuState) -> Result<(), VcpuError> {
        vcpu_state::restore(&self.fd, state).map_err(|source| VcpuError::State {
            id: self.id,
            source,
        })
    }

    /// Puts the vCPU at the 64-bit entry point of a kernel if it is the first, and lets it wait for
    /// the kernel to start it otherwise.
    ///
    /// # Errors
    ///
    /// KVM refuses a register.
    pub fn set_boot_state(
        &self,
        entry: GuestAddress,
        zero_page: GuestAddress,
    ) -> Result<(), VcpuError> {
        self.wait_for_start(None)?;
        if self.id == 0 {
            self.enter(entry, zero_page)?;
        }
        Ok(())
    }

    /// Lets the vCPU wait for a kernel to start it, beside a first one whose time stamp counter
    /// was put to `tsc`.
    ///
    /// # Errors
    ///
    /// KVM refuses a register.
    pub fn wait_for_start(&self, tsc: Option<u64>) -> Result<(), VcpuError> {
        let failed = |call| {
            move |source| VcpuError::Kvm {
                call,
                id: self.id,
                source,
            }
        };
        let fixed = [
            (MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
            (MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
        ];
        // KVM keeps the counters of vCPUs together to which the same value is written.
        let tsc = tsc.map(|tsc| (MSR_IA32_TSC, tsc));
        let msrs: Vec<_> = tsc
            .into_iter()
            .chain(fixed)
            .map(|(index, data)| kvm_msr_entry {
                index,
                data,
                ..Default::default()
            })
            .collect();
        let msrs = Msrs::from_entries(&msrs).expect("three entries fit");
        // A host may lack one of them: the kernel copes.
        self.fd.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;
        let fpu = kvm_fpu {
            fcw: FPU_CONTROL,
            mxcsr: MXCSR,
            ..Default::default()
        };
        self.fd.set_fpu(&fpu).map_err(failed("KVM_SET_FPU"))?;
        let mut lapic = self.fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
        set_lapic_mode(&mut lapic, APIC_LVT0, APIC_MODE_EXTINT);
        set_lapic_mode(&mut lapic, APIC_LVT1, APIC_MODE_NMI);
        self.fd.set_lapic(&lapic).map_err(failed("KVM_SET_LAPIC"))
    }

    /// Sets the registers for 64-bit code at `entry`.
    ///
    /// # Errors
    ///
    /// KVM refuses a register.
    pub fn enter(&self, entry: GuestAddress, argument: GuestAddress) -> Result<(), VcpuError> {
        let failed = |call| {
            move |source| VcpuError::Kvm {
                call,
                id: self.id,
                source,
            }
        };
        let mut sregs = self.fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        long_mode::set_sregs(&mut sregs);
        self.fd.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
        self.fd
            .set_regs(&long_mode::regs(entry, argument))
            .map_err(failed("KVM_SET_REGS"))?;
        let mp_state = kvm_bindings::kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        };
        self.fd
            .set_mp_state(mp_state)
            .map_err(failed("KVM_SET_MP_STATE"))
    }

    /// Lets KVM finish what the last exit began, without running the guest: the answer to an MMIO
    /// read reaches its register only now.
    fn complete_exit(&mut self) {
        self.fd.set_kvm_immediate_exit(1);
        // It returns at once, with EINTR.
        let _ = self.fd.run();
        self.fd.set_kvm_immediate_exit(0);
    }

    /// The vCPU's descriptor, for who must run it before its thread does.
    pub fn fd(&mut self) -> &mut VcpuFd {
        &mut self.fd
    }
}

fn set_lapic_mode(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let bytes = &mut lapic.regs[register..register + 4];
    let mut value = [0; 4];
    for (to, from) in value.iter_mut().zip(bytes.iter()) {
        *to = from.to_le_bytes()[0];
    }
    let value = u32::from_le_bytes(value) & !0x700 | mode;
    for (to, from) in bytes.iter_mut().zip(value.to_le_bytes()) {
        *to = i8::from_le_bytes([from]);
    }
}

/// What the guest reaches through exits.
pub struct Buses {
    /// I/O ports.
    pub ports: Ports,
    /// virtio-mmio devices.
    pub mmio: VirtioMmioBus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    Pause,
    Run,
    End,
}

struct Shared {
    command: Mutex<(Command, usize)>,
    changed: Condvar,
    /// Each is locked by its thread while it runs.
    vcpus: Vec<Mutex<Vcpu>>,
    /// Set while `command` is not `Run`, so that a running thread need not take the lock.
    attention: AtomicBool,
    exits: AtomicU64,
    buses: Buses,
    end: Arc<End>,
    profile: Option<Profile>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, (Command, usize)> {
        self.command.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The vCPUs of a VM, each in its thread. Dropping it ends them.
pub struct Vcpus {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

extern "C" fn interrupted(_: c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // Only there so that KVM_RUN returns with EINTR.
}

impl Vcpus {
    /// Starts the threads, all paused.
    ///
    /// # Errors
    ///
    /// A thread could not be made; those that were are ended.
    pub fn spawn(
        vcpus: Vec<Vcpu>,
        buses: Buses,
        end: Arc<End>,
        profile: Option<Profile>,
    ) -> Result<Self, VcpuError> {
        register_signal_handler(kick_signal(), interrupted).map_err(VcpuError::Signal)?;
        let shared = Arc::new(Shared {
            command: Mutex::new((Command::Pause, 0)),
            changed: Condvar::new(),
            vcpus: vcpus.into_iter().map(Mutex::new).collect(),
            attention: AtomicBool::new(true),
            exits: AtomicU64::new(0),
            buses,
            end,
            profile,
        });
        let mut started = Self {
            shared,
            threads: Vec::new(),
        };
        for id in 0..u8::try_from(started.shared.vcpus.len()).unwrap_or(u8::MAX) {
            let shared = Arc::clone(&started.shared);
            let thread = thread::Builder::new()
                .name(format!("vcpu{id}"))
                .spawn(move || run(&shared.vcpus[usize::from(id)], &shared))
                .map_err(|source| VcpuError::Thread { id, source })?;
            started.threads.push(thread);
        }
        Ok(started)
    }

    /// Lets the vCPUs run.
    pub fn resume(&self) {
        let mut command = self.shared.lock();
        if command.0 == Command::Pause {
            command.0 = Command::Run;
            self.shared.attention.store(false, Ordering::SeqCst);
            self.shared.changed.notify_all();
        }
    }

    /// Stops the vCPUs; returns when all stand still.
    pub fn pause(&self) {
        let mut command = self.shared.lock();
        if command.0 != Command::Run {
            return;
        }
        command.0 = Command::Pause;
        self.shared.attention.store(true, Ordering::SeqCst);
        while command.1
            < self
                .threads
                .iter()
                .filter(|thread| !thread.is_finished())
                .count()
        {
            self.kick();
            let wait = self.shared.changed.wait_timeout(command, KICK_INTERVAL);
            command = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The state of all vCPUs, which must be paused.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub fn save(&self, kvm: &Kvm) -> Result<Vec<VcpuState>, VcpuError> {
        let save = |vcpu: &Mutex<Vcpu>| {
            let mut vcpu = lock(vcpu);
            vcpu.complete_exit();
            vcpu_state::save(kvm, &vcpu.fd, vcpu.cpuid()).map_err(|source| VcpuError::State {
                id: vcpu.id,
                source,
            })
        };
        self.shared.vcpus.iter().map(save).collect()
    }

    /// What the vCPUs reach through exits.
    #[must_use]
    pub fn buses(&self) -> &Buses {
        &self.shared.buses
    }

    /// Exits of all vCPUs to the VMM so far.
    #[must_use]
    pub fn exits(&self) -> u64 {
        self.shared.exits.load(Ordering::Relaxed)
    }

    /// The samples of [`crate::config::VmConfig::profile`], if they are taken.
    #[must_use]
    pub fn profile(&self) -> Option<&Profile> {
        self.shared.profile.as_ref()
    }

    /// Makes every thread leave KVM for a moment.
    pub fn kick(&self) {
        for thread in &self.threads {
            // A thread that has ended needs no kick.
            let _ = thread.kill(kick_signal());
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.shared.lock().0 = Command::End;
        self.shared.attention.store(true, Ordering::SeqCst);
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            while !thread.is_finished() {
                // Again and again: a signal that arrives just before KVM_RUN is lost.
                let _ = thread.kill(kick_signal());
                thread::sleep(KICK_INTERVAL / 10);
            }
            // A panicked vCPU thread has said so on standard error.
            let _ = thread.join();
        }
    }
}

fn kick_signal() -> c_int {
    SIGRTMIN()
}

fn lock(vcpu: &Mutex<Vcpu>) -> MutexGuard<'_, Vcpu> {
    vcpu.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(vcpu: &Mutex<Vcpu>, shared: &Shared) {
    while wait_for_run(shared) {
        let mut vcpu = lock(vcpu);
        while !shared.attention.load(Ordering::SeqCst) {
            if let Err((reason, message)) = step(&mut vcpu, shared) {
                shared.end.set(reason, message);
                return;
            }
            if shared.end.reason().is_some() {
                return;
            }
        }
    }
}

/// Stands still until the vCPU shall run; false if it shall end.
fn wait_for_run(shared: &Shared) -> bool {
    let mut command = shared.lock();
    command.1 += 1;
    shared.changed.notify_all();
    while command.0 == Command::Pause {
        command = shared
            .changed
            .wait(command)
            .unwrap_or_else(PoisonError::into_inner);
    }
    command.1 -= 1;
    command.0 == Command::Run
}

/// Runs the guest until its next exit, and handles that.
fn step(vcpu: &mut Vcpu, shared: &Shared) -> Result<(), (ExitReason, String)> {
    let id = vcpu.id;
    let exit = match vcpu.fd.run() {
        Ok(exit) => exit,
        Err(err) if err.errno() == libc::EINTR || err.errno() == libc::EAGAIN => {
            if let Some(profile) = &shared.profile
                && let Ok(regs) = vcpu.fd.get_regs()
            {
                let stack = vcpu.fd.translate_gva(regs.rsp).ok();
                let stack = stack.filter(|translation| translation.valid != 0);
                profile.sample(
                    regs.rip,
                    stack.map(|translation| translation.physical_address),
                );
            }
            return Ok(());
        }
        Err(err) => {
            let message = format!("vCPU {id}: KVM_RUN failed: {err}");
            return Err((ExitReason::InternalError, message));
        }
    };
    shared.exits.fetch_add(1, Ordering::Relaxed);
    match exit {
        VcpuExit::IoIn(port, data) => shared.buses.ports.read(port, data),
        VcpuExit::IoOut(port, data) => shared.buses.ports.write(port, data),
        VcpuExit::MmioRead(address, data) => shared.buses.mmio.read(address, data),
        VcpuExit::MmioWrite(address, data) => shared.buses.mmio.write(address, data),
        VcpuExit::Shutdown => {
            let rip = vcpu.fd.get_regs().map_or(0, |regs| regs.rip);
            let message = format!("vCPU {id}: triple fault at {rip:#x}");
            return Err((ExitReason::TripleFault, message));
        }
        VcpuExit::InternalError => {
            return Err((ExitReason::InternalError, internal_error(vcpu)));
        }
        other => {
            let message = format!("vCPU {id}: unexpected exit {other:?}");
            return Err((ExitReason::InternalError, message));
        }
    }
    Ok(())
}

/// What KVM says about an internal error: for an emulation failure, the bytes it stumbled over.
fn internal_error(vcpu: &mut Vcpu) -> String {
    let rip = vcpu.fd.get_regs().map_or(0, |regs| regs.rip);
    let run = vcpu.fd.get_kvm_run();
    // SAFETY: after KVM_EXIT_INTERNAL_ERROR this is the member of the union that KVM filled in;
    // it is plain data, valid for every bit pattern.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let mut message = format!("vCPU {}: KVM internal error {}", vcpu.id, internal.suberror);
    if internal.suberror == kvm_bindings::KVM_INTERNAL_ERROR_EMULATION {
        message.push_str(" (instruction that it cannot emulate)");
        // Documentation/virt/kvm/api.rst, KVM_INTERNAL_ERROR_EMULATION: flags, then length and
        // bytes of the instruction.
        let [_, bytes @ ..] = &internal.data;
        let bytes: Vec<u8> = bytes.iter().flat_map(|word| word.to_le_bytes()).collect();
        if internal.ndata >= 3 && internal.data[0] & 1 != 0 {
            message.push(':');
            for byte in &bytes[1..1 + usize::from(bytes[0]).min(15)] {
                let _ = write!(message, " {byte:02x}");
            }
        }
    }
    let _ = write!(message, " at {rip:#x}");
    message
}
