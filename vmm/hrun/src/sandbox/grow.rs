//! A clone of a template for less memory or fewer CPUs, made as large as is asked for.
//!
//! The VMM gives it what it lacks before it runs, the agent has the kernel take that into use, and
//! its answer must show what was asked for. Whatever goes wrong costs a moment: the VM is dropped,
//! and the container gets another one.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use agent_protocol::Event;
use rustix::event::{PollFd, PollFlags};
use vmm::{
    config::{Origin, VmConfig},
    end::chain,
};

use super::{Announce, BootError, CONTROL_TIMEOUT, Claim, ClaimError, CloneError, Ended, Sandbox};
use crate::{
    agent::{Control, ControlError},
    exit, poll,
    signals::Signals,
    template::{Class, Rehearsal, Template, TemplateError},
    translate,
};

/// A clone that did not become what it was to be.
#[derive(Debug, thiserror::Error)]
enum GrowError {
    /// The agent cannot be talked to.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The VM is gone.
    #[error("Its VM ended: {0}")]
    Ended(Ended),
    /// Waiting for it failed.
    #[error("Failed to wait for the agent")]
    Wait(#[source] io::Error),
    /// It did not answer.
    #[error("The agent did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The guest cannot do it.
    #[error("{0}")]
    Agent(String),
    /// It says that it did, and did not.
    #[error("The guest shows {cpus} CPUs and {memory_total} bytes of memory")]
    Size { cpus: u32, memory_total: u64 },
    /// A signal told us to end.
    #[error("Interrupted by signal {0}")]
    Interrupted(i32),
}

impl Sandbox {
    /// A clone of a smaller template, made bigger; none if there is no such template, or it did not
    /// work. `instead` says why it is needed.
    pub(super) fn grown(
        config: &dyn Fn(Origin) -> VmConfig,
        claim: &Claim<'_>,
        signals: &mut Signals,
        announce: Announce<'_>,
        instead: &str,
    ) -> Result<Option<Self>, ClaimError> {
        let Some(template) = smaller(claim)? else {
            return Ok(None);
        };
        claim.timeline.mark("smaller template found");
        let config = config(Origin::Restore(template.dir.clone()));
        let config = translate::grown(config, template.class, claim.class);
        let cloned = Self::clone_of(&template, &config, claim, announce);
        let mut sandbox = match cloned {
            Ok(sandbox) => sandbox,
            // Who needs that template itself removes it.
            Err(CloneError::Unusable(ended)) => {
                exit::print_error(&format!("hrun: {ended}; nothing was made bigger\n"));
                return Ok(None);
            }
            Err(CloneError::Fatal(error)) => return Err(error),
        };
        match sandbox.grow(template.class, claim, signals) {
            Ok(()) => {}
            Err(GrowError::Interrupted(signal)) => {
                return Err(BootError::Interrupted(signal).into());
            }
            Err(error) => {
                let (class, why) = (template.class, chain(&error));
                exit::print_error(&format!(
                    "hrun: failed to make a VM of {class} bigger: {why}\n"
                ));
                sandbox.clear_away();
                return Ok(None);
            }
        }
        claim.timeline.mark("VM made bigger");
        let why = format!("from {}; {instead}", template.class);
        claim.timeline.note_way("grow", why);
        Ok(Some(sandbox))
    }

    /// Has the guest take into use what it was given, and compares what it shows then.
    fn grow(
        &mut self,
        from: Class,
        claim: &Claim<'_>,
        signals: &mut Signals,
    ) -> Result<(), GrowError> {
        let deadline = Instant::now() + claim.timeout;
        let mut control = Control::open(&self.vsock, vec![translate::growth(from, claim.class)])?;
        loop {
            if let Some(signal) = signals.ending() {
                return Err(GrowError::Interrupted(signal));
            }
            let mut fds = [
                PollFd::new(&control, PollFlags::IN),
                PollFd::new(&*signals, PollFlags::IN),
            ];
            if !poll::wait(&mut fds, Some(deadline)).map_err(GrowError::Wait)? {
                return Err(GrowError::Timeout(claim.timeout));
            }
            if fds[0].revents().is_empty() {
                continue;
            }
            let events = match control.receive() {
                Ok(events) => events,
                Err(error) => return Err(self.lost(error)),
            };
            for event in events {
                if let Some(grown) = judge(&event, from, claim.class) {
                    return grown;
                }
            }
        }
    }

    /// Why the agent is not there any more.
    fn lost(&mut self, error: ControlError) -> GrowError {
        match self.process.wait(Some(Instant::now() + CONTROL_TIMEOUT)) {
            Ok(Some(ended)) => GrowError::Ended(ended),
            _ => error.into(),
        }
    }

    /// Ends the VM and makes room for another one in its place.
    fn clear_away(self) {
        let Self {
            process,
            control,
            vsock,
            ..
        } = self;
        drop(process);
        for socket in [control, vsock] {
            // What is left of it would be in the way of the next VM, which will say so.
            let _ = fs::remove_file(socket);
        }
    }
}

/// The best template to begin with.
fn smaller(claim: &Claim<'_>) -> Result<Option<Template>, ClaimError> {
    let image = claim.image.map(Rehearsal::image);
    let candidates = claim
        .templates
        .growing_to(claim.class, claim.parts, image)?;
    for template in candidates {
        match claim.templates.is_usable(&template) {
            Ok(true) => return Ok(Some(template)),
            // Gone, or damaged: who needs it itself makes it anew.
            Ok(false) | Err(TemplateError::Snapshot(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// What an event says of the growth, if anything.
fn judge(event: &Event, from: Class, class: Class) -> Option<Result<(), GrowError>> {
    match event {
        Event::Grown {
            cpus, memory_total, ..
        } => {
            let (cpus, memory_total) = (*cpus, *memory_total);
            // What was not added to is as exact as the template is.
            let exact = cpus == u32::from(class.cpus)
                && (memory_total == class.memory || class.memory == from.memory);
            Some(if exact {
                Ok(())
            } else {
                Err(GrowError::Size { cpus, memory_total })
            })
        }
        Event::Failed { message, .. } => Some(Err(GrowError::Agent(message.clone()))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use agent_protocol::Failure;

    use super::*;

    const SMALL: Class = Class {
        cpus: 1,
        memory: 256 << 20,
    };
    const CLASS: Class = Class {
        cpus: 2,
        memory: 1 << 30,
    };

    fn grown(cpus: u32, memory_total: u64) -> Option<Result<(), GrowError>> {
        let event = Event::Grown {
            request: 0,
            cpus,
            memory_total,
        };
        judge(&event, SMALL, CLASS)
    }

    #[test]
    fn only_a_guest_of_exactly_the_size_asked_for_is_taken() {
        assert!(matches!(grown(2, 1 << 30), Some(Ok(()))));
        for (cpus, memory) in [(1, 1 << 30), (3, 1 << 30), (2, (1 << 30) - 4096)] {
            assert!(matches!(
                grown(cpus, memory),
                Some(Err(GrowError::Size { .. }))
            ));
        }
    }

    #[test]
    fn a_refusal_is_passed_on_and_other_events_say_nothing() {
        let refused = Event::Failed {
            request: 0,
            kind: Failure::System,
            message: "no CPU".into(),
        };
        let Some(Err(error)) = judge(&refused, SMALL, CLASS) else {
            panic!("a refusal is the answer");
        };
        assert_eq!(error.to_string(), "no CPU");
        assert!(judge(&Event::Done { request: 0 }, SMALL, CLASS).is_none());
    }
}
