//! A vCPU: its thread, the commands it takes, and what it does at each exit.
//!
//! ```text
//!             Resume     Pause, Resume
//!  created ─────────> running <══════> paused      Stop, from any state: the thread ends
//!                       │  exit: port or register access, dispatched to a bus
//!                       └─ exit: the machine ends ──> ended, runs no more
//! ```
//!
//! UNSAFETY: another thread makes a vCPU leave the guest by setting a flag in the page that KVM
//! shares with it (`Kicker`).
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Once, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Instant;

use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use varve_devices::bus::Bus;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::async_faults::AsyncFaults;
use crate::end::{End, EndSignal};
use crate::metrics;
use crate::seccomp;

/// Threads of vCPUs, by thread id.
static THREADS: RwLock<Vec<u32>> = RwLock::new(Vec::new());

/// Whether the thread with this id is a vCPU's.
pub fn is_vcpu_thread(id: u32) -> bool {
    THREADS.read().unwrap_or_else(PoisonError::into_inner).contains(&id)
}

/// What all vCPUs of a machine share.
pub struct Buses {
    /// I/O ports whose accesses come to the monitor.
    pub ports: Bus,
    /// Memory where no memory slot is.
    pub memory: Bus,
    /// What the guest has of asynchronous page faults, if they are withheld from it.
    pub async_faults: Option<Arc<AsyncFaults>>,
    /// Where the machine's end is announced.
    pub end: Arc<EndSignal>,
    /// What vCPUs count.
    pub metrics: Arc<metrics::Vcpu>,
}

/// Why vCPUs do not start or obey.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// No thread.
    #[error("cannot start the thread of vCPU {0}")]
    Spawn(u8, #[source] io::Error),
    /// The thread is gone.
    #[error("vCPU {0} does not answer")]
    Gone(u8),
}

/// What a vCPU can be told.
enum Command {
    Resume,
    Pause,
    Stop,
    /// Something to do with the vCPU while it stands still.
    Call(Box<dyn FnOnce(&mut VcpuFd) + Send>),
}

/// The means to make a vCPU leave the guest: the byte `immediate_exit` of the page that KVM shares,
/// through a mapping of its own.
struct Kicker {
    page: *mut c_void,
}

// SAFETY: the mapping is owned, and its one byte in use is accessed as an atomic.
unsafe impl Send for Kicker {}

impl Kicker {
    fn new(fd: &VcpuFd) -> io::Result<Kicker> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        // SAFETY: the descriptor is open for the length of the call.
        let vcpu = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; KVM's page 0 of a vCPU
        // descriptor is its `kvm_run` (KVM API, 5).
        let page = unsafe {
            mmap(std::ptr::null_mut(), size_of::<kvm_run>(), access, MapFlags::SHARED, vcpu, 0)
        }?;
        Ok(Kicker { page })
    }

    /// With 1, the next entry into the guest returns at once; a signal ends a present one.
    fn set(&self, value: u8) {
        let flag = self.page.wrapping_byte_add(offset_of!(kvm_run, immediate_exit));
        // SAFETY: inside the mapping, which lives as long as `self`; other threads and the kernel
        // access the byte atomically too.
        unsafe { AtomicU8::from_ptr(flag.cast()) }.store(value, Ordering::SeqCst);
    }
}

impl Drop for Kicker {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` and nothing else knows its address.
        let _ = unsafe { rustix::mm::munmap(self.page, size_of::<kvm_run>()) };
    }
}

/// The owner's end of a vCPU.
pub struct VcpuHandle {
    id: u8,
    commands: Sender<Command>,
    kicker: Kicker,
    thread: Option<JoinHandle<()>>,
}

impl VcpuHandle {
    /// Starts the thread of vCPU `id`, paused.
    pub fn start(id: u8, fd: VcpuFd, buses: Arc<Buses>) -> Result<VcpuHandle, VcpuError> {
        install_kick_handler();
        let spawn = |e| VcpuError::Spawn(id, e);
        let kicker = Kicker::new(&fd).map_err(spawn)?;
        let own_kicker = Kicker::new(&fd).map_err(spawn)?;
        let (commands, inbox) = channel();
        let vcpu = Vcpu { id, fd, kicker: own_kicker, inbox, buses };
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(move || vcpu.main())
            .map_err(spawn)?;
        Ok(VcpuHandle { id, commands, kicker, thread: Some(thread) })
    }

    fn send(&self, command: Command) -> Result<(), VcpuError> {
        self.commands.send(command).map_err(|_| VcpuError::Gone(self.id))?;
        self.kicker.set(1);
        if let Some(thread) = &self.thread {
            thread.kill(SIGRTMIN()).map_err(|_| VcpuError::Gone(self.id))?;
        }
        Ok(())
    }

    /// Lets the vCPU run.
    pub fn resume(&self) -> Result<(), VcpuError> {
        self.send(Command::Resume)
    }

    /// Asks the vCPU to leave the guest; [`VcpuHandle::call`] waits until it has.
    pub fn pause(&self) -> Result<(), VcpuError> {
        self.send(Command::Pause)
    }

    /// Does `f` on the vCPU's own thread while it is outside of the guest, and waits for its answer.
    /// Commands before it are carried out first.
    pub fn call<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut VcpuFd) -> R + Send + 'static,
    ) -> Result<R, VcpuError> {
        let (answer, result) = channel();
        self.send(Command::Call(Box::new(move |fd| drop(answer.send(f(fd))))))?;
        result.recv().map_err(|_| VcpuError::Gone(self.id))
    }
}

impl Drop for VcpuHandle {
    fn drop(&mut self) {
        let _ = self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Tells the guest that this vCPU stood still, so that its watchdogs forgive the gap. A guest without
/// kvm-clock has none to tell.
pub fn tell_of_pause(fd: &VcpuFd, metrics: &metrics::Vcpu) {
    if fd.kvmclock_ctrl().is_err() {
        metrics.kvmclock_ctrl_fails.inc();
    }
}

/// A vCPU on its own thread.
struct Vcpu {
    id: u8,
    fd: VcpuFd,
    kicker: Kicker,
    inbox: Receiver<Command>,
    buses: Arc<Buses>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Paused,
    /// The machine has ended: nothing runs any more, calls are still answered.
    Ended,
    Stopped,
}

impl Vcpu {
    fn main(mut self) {
        seccomp::confine_or_die(seccomp::Thread::Vcpu);
        let id = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        THREADS.write().unwrap_or_else(PoisonError::into_inner).push(id);
        let mut state = State::Paused;
        loop {
            state = match state {
                State::Running => {
                    let state = self.run();
                    self.obey_all(state)
                }
                State::Paused | State::Ended => match self.inbox.recv() {
                    Ok(command) => self.obey(command, state),
                    Err(_) => State::Stopped,
                },
                State::Stopped => return,
            };
        }
    }

    fn obey_all(&mut self, mut state: State) -> State {
        loop {
            match self.inbox.try_recv() {
                Ok(command) => state = self.obey(command, state),
                Err(TryRecvError::Empty) => return state,
                Err(TryRecvError::Disconnected) => return State::Stopped,
            }
        }
    }

    fn obey(&mut self, command: Command, state: State) -> State {
        match command {
            Command::Resume if state == State::Paused => State::Running,
            Command::Pause if state == State::Running => {
                tell_of_pause(&self.fd, &self.buses.metrics);
                State::Paused
            }
            Command::Resume | Command::Pause => state,
            Command::Stop => State::Stopped,
            Command::Call(f) => {
                f(&mut self.fd);
                state
            }
        }
    }

    /// Runs the guest until there is a command, or the machine has ended.
    fn run(&mut self) -> State {
        let Buses { ports, memory, async_faults, end, metrics } = &*self.buses.clone();
        let (id, async_faults) = (usize::from(self.id), async_faults.as_deref());
        loop {
            match self.fd.run() {
                Ok(VcpuExit::IoOut(port, data)) => {
                    let start = Instant::now();
                    ports.write(port.into(), data);
                    metrics.exit_io_out.inc();
                    metrics.exit_io_out_agg.record_since(start);
                }
                Ok(VcpuExit::IoIn(port, data)) => {
                    let start = Instant::now();
                    ports.read(port.into(), data);
                    metrics.exit_io_in.inc();
                    metrics.exit_io_in_agg.record_since(start);
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    let start = Instant::now();
                    memory.write(address, data);
                    metrics.exit_mmio_write.inc();
                    metrics.exit_mmio_write_agg.record_since(start);
                }
                Ok(VcpuExit::MmioRead(address, data)) => {
                    let start = Instant::now();
                    memory.read(address, data);
                    metrics.exit_mmio_read.inc();
                    metrics.exit_mmio_read_agg.record_since(start);
                }
                Err(e) if e.errno() == libc::EINTR => {
                    // First the flag, then the inbox: a command that comes in between sets it
                    // again and is seen at the next entry.
                    self.kicker.set(0);
                    return State::Running;
                }
                Err(e) if e.errno() == libc::EAGAIN => {}
                // KVM asks about registers that were withheld, and about no others.
                Ok(VcpuExit::X86Rdmsr(exit)) => {
                    match async_faults.and_then(|faults| faults.read(id, exit.index)) {
                        Some(value) => *exit.data = value,
                        None => *exit.error = 1,
                    }
                }
                Ok(VcpuExit::X86Wrmsr(exit)) => {
                    let may = async_faults.is_some_and(|f| f.write(id, exit.index, exit.data));
                    *exit.error = u8::from(!may);
                }
                Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => {}
                other => {
                    let exit = other.map(|exit| describe(&exit));
                    metrics.failures.inc();
                    end.announce(self.fatal(exit));
                    return State::Ended;
                }
            }
        }
    }

    fn fatal(&mut self, exit: Result<Fatal, kvm_ioctls::Error>) -> End {
        let id = self.id;
        match exit {
            Ok(Fatal::TripleFault) => End::TripleFault,
            Ok(Fatal::Internal) => End::Crash(format!("vCPU {id}: {}", self.internal_error())),
            Ok(Fatal::Entry(text)) => End::Kvm(format!("vCPU {id}: {text}")),
            Ok(Fatal::Other(text)) => End::Crash(format!("vCPU {id}: {text}")),
            Err(e) if matches!(e.errno(), libc::EFAULT | libc::EHWPOISON) => {
                End::Unbacked(format!("vCPU {id}: KVM cannot have a page of guest memory: {e}"))
            }
            Err(e) => End::Kvm(format!("vCPU {id}: KVM_RUN: {e}")),
        }
    }

    /// What KVM could not do (KVM API, KVM_EXIT_INTERNAL_ERROR), and where.
    fn internal_error(&mut self) -> String {
        // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which KVM fills this member.
        let code = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
        let what = match code {
            1 => "KVM met an instruction that it cannot emulate",
            2 => "an exception came up while another was delivered",
            3 => "an exit came up while an event was delivered",
            4 => "KVM met an unexpected exit reason",
            _ => "KVM internal error",
        };
        let at = self.fd.get_regs().map(|r| format!(" at rip {:#x}", r.rip)).unwrap_or_default();
        format!("{what}{at} (suberror {code})")
    }
}

/// An exit after which the machine cannot go on.
enum Fatal {
    TripleFault,
    Internal,
    Entry(String),
    Other(String),
}

fn describe(exit: &VcpuExit) -> Fatal {
    match exit {
        VcpuExit::Shutdown => Fatal::TripleFault,
        VcpuExit::InternalError => Fatal::Internal,
        VcpuExit::FailEntry(reason, cpu) => {
            Fatal::Entry(format!("entry refused by the processor, reason {reason:#x} on CPU {cpu}"))
        }
        VcpuExit::MemoryFault { gpa, size, .. } => {
            Fatal::Other(format!("no memory behind {size} bytes at guest address {gpa:#x}"))
        }
        other => Fatal::Other(format!("unexpected exit {other:?}")),
    }
}

/// The kick's signal only interrupts; its handler has nothing to do.
fn install_kick_handler() {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Err(e) = register_signal_handler(SIGRTMIN(), nothing) {
            log::error!("vCPU kick signal: {e}");
        }
    });
}
