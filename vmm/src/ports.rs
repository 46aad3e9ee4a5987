//! The I/O ports of the VM: the few that a guest needs to say how it ends, and a serial port for
//! its boot log when somebody wants to read it.

use std::{
    fs::File,
    sync::{Arc, Mutex, PoisonError},
};

use vm_superio::{Serial, serial::NoEvents};

use crate::{end::End, exit::ExitReason};

/// Command port of the i8042 keyboard controller, by which a PC is reset (`reboot=k`).
const I8042_COMMAND: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;
/// QEMU's pvpanic ISA device (docs/specs/pvpanic.rst).
pub const PVPANIC: u16 = 0x505;
const PVPANIC_PANICKED: u8 = 1;
const PVPANIC_SHUTDOWN: u8 = 4;
/// First serial port, eight registers.
const COM1: u16 = 0x3f8;
const COM1_LAST: u16 = COM1 + 7;

type Console = Serial<NoTrigger, NoEvents, File>;

/// The kernel writes its log by polling: the port never interrupts.
struct NoTrigger;

impl vm_superio::Trigger for NoTrigger {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        Ok(())
    }
}

/// All I/O ports. Those that do not exist read as ones, as on a bus with nobody there.
pub struct Ports {
    console: Option<Mutex<Console>>,
    end: Arc<End>,
}

impl Ports {
    /// Ports of a VM whose boot log goes to `console`, if anywhere.
    #[must_use]
    pub fn new(console: Option<File>, end: Arc<End>) -> Self {
        let console = console.map(|file| Mutex::new(Serial::new(NoTrigger, file)));
        Self { console, end }
    }

    /// The guest read from `port`.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        // The controller's input buffer is empty: the kernel waits for that before it asks for a
        // reset, for most of a second if it never is.
        if let (I8042_COMMAND, [status]) = (port, &mut *data) {
            *status = 0;
        }
        if let (Some(console), COM1..=COM1_LAST, [byte]) = (&self.console, port, data) {
            let mut console = console.lock().unwrap_or_else(PoisonError::into_inner);
            *byte = console.read(offset(port));
        }
    }

    /// The guest wrote to `port`.
    pub fn write(&self, port: u16, data: &[u8]) {
        match (port, data) {
            (COM1..=COM1_LAST, &[byte]) => {
                if let Some(console) = &self.console {
                    let mut console = console.lock().unwrap_or_else(PoisonError::into_inner);
                    // A boot log that cannot be written (full disk) must not disturb the guest.
                    let _ = console.write(offset(port), byte);
                }
            }
            (I8042_COMMAND, &[I8042_RESET]) => {
                self.end
                    .set(ExitReason::Reset, ExitReason::Reset.describe());
            }
            (PVPANIC, &[byte]) if byte & PVPANIC_PANICKED != 0 => {
                self.end
                    .set(ExitReason::Panic, ExitReason::Panic.describe());
            }
            (PVPANIC, &[byte]) if byte & PVPANIC_SHUTDOWN != 0 => {
                self.end
                    .set(ExitReason::Shutdown, ExitReason::Shutdown.describe());
            }
            _ => {}
        }
    }
}

fn offset(port: u16) -> u8 {
    u8::try_from(port - COM1).expect("the port is one of eight")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_end_is_told_apart_and_the_first_wins() {
        for (port, byte, reason) in [
            (I8042_COMMAND, I8042_RESET, ExitReason::Reset),
            (PVPANIC, PVPANIC_PANICKED, ExitReason::Panic),
            (PVPANIC, PVPANIC_SHUTDOWN, ExitReason::Shutdown),
        ] {
            let end = Arc::new(End::new().unwrap());
            let ports = Ports::new(None, Arc::clone(&end));
            ports.write(0x80, &[0]);
            ports.write(port, &[byte, byte]);
            assert!(end.reason().is_none());
            ports.write(port, &[byte]);
            ports.write(I8042_COMMAND, &[I8042_RESET]);
            assert_eq!(end.reason().map(|why| why.0), Some(reason));
        }
    }

    #[test]
    fn absent_ports_read_as_ones() {
        let ports = Ports::new(None, Arc::new(End::new().unwrap()));
        let mut data = [0; 4];
        ports.read(COM1, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn the_keyboard_controller_is_ready_for_a_command() {
        let ports = Ports::new(None, Arc::new(End::new().unwrap()));
        let mut status = [0xff];
        ports.read(I8042_COMMAND, &mut status);
        assert_eq!(status[0] & 2, 0, "the input buffer is empty");
    }

    #[test]
    fn the_console_file_gets_what_the_guest_prints() {
        let mut file = tempfile::tempfile().unwrap();
        let ports = Ports::new(
            Some(file.try_clone().unwrap()),
            Arc::new(End::new().unwrap()),
        );
        for byte in b"Linux" {
            let mut status = [0];
            ports.read(COM1 + 5, &mut status);
            assert_eq!(status[0] & 0x20, 0x20, "the transmitter is always empty");
            ports.write(COM1, &[*byte]);
        }
        use std::io::{Read, Seek};
        file.rewind().unwrap();
        let mut log = String::new();
        file.read_to_string(&mut log).unwrap();
        assert_eq!(log, "Linux");
    }
}
