//! `hrun`: runs every container in its own lightweight virtual machine.
//!
//! Here begins and ends the process: arguments come in, the exit status is decided.
#![forbid(unsafe_code)]

mod agent;
mod attach;
mod background;
mod bench;
mod cgroup;
mod cli;
mod clock;
mod commands;
mod container;
mod copy;
mod dirs;
mod events;
mod exit;
mod failpoint;
mod hint;
mod host;
mod identity;
mod launch;
mod log;
mod memory;
mod oci;
mod options;
mod parts;
mod poll;
mod pool;
mod process;
mod relay;
mod restart;
mod rootfs;
mod rotated;
mod sandbox;
mod seccomp;
mod session;
mod signals;
mod spec;
mod state_file;
mod table;
mod template;
mod terminal;
mod time;
mod timeline;
mod translate;
mod turn;
mod usage;
mod volumes;
mod watch;

use std::process::ExitCode;

use clap::Parser;
use cli::Invocation;
use oci::OciCli;
use timeline::Timeline;

fn main() -> ExitCode {
    let timeline = Timeline::new();
    let args: Vec<_> = std::env::args_os().collect();
    if oci::is_meant(&args) {
        return match OciCli::try_parse_from(args) {
            Ok(cli) => ExitCode::from(oci::execute(&cli, timeline)),
            Err(refused) => refused.exit(),
        };
    }
    let invocation = match Invocation::parse(args.into_iter()) {
        Ok(invocation) => invocation,
        Err(refused) => return refused.print(),
    };
    let for_run = invocation.is_run();
    match commands::execute(invocation, timeline) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            let chain = table::printable(&format!("{error:#}"));
            // Standard error may be gone: the status still says what is to be said.
            let mut text = format!("hrun: {chain}\n");
            if let Some(hint) = hint::for_error(&error) {
                text.push_str(&format!("hint: {hint}\n"));
            }
            exit::print_error(&text);
            ExitCode::from(exit::status_of(&error, for_run))
        }
    }
}
