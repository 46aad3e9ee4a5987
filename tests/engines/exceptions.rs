//! What works for the usual runtime and not for hrun, with the reason.

use crate::{
    Column, Outcome, Results,
    engine::{Kind, Runtime},
};

/// Feature, engine, reason.
const EXCEPTIONS: [(&str, Kind, &str); 1] = [(
    "top",
    Kind::Podman,
    "podman reads /proc in the mount namespace of the container's process on the host, whose root is \
     the container's: no process is there; `podman exec CONTAINER ps` shows them",
)];

/// Whether hrun does all that the usual runtime does, exceptions apart. Says what it does not.
pub(crate) fn judge(names: &[&'static str], results: &Results) -> bool {
    let mut fine = true;
    for kind in [Kind::Podman, Kind::Docker, Kind::Ctr] {
        for &name in names {
            let outcome = |runtime| results.get(&(name, Column { kind, runtime }));
            let column = Column {
                kind,
                runtime: Runtime::Hrun,
            };
            let exception = EXCEPTIONS.iter().find(|(n, k, _)| *n == name && *k == kind);
            match (outcome(Runtime::Hrun), outcome(Runtime::Usual), exception) {
                (Some(Outcome::Fails(_)), Some(Outcome::Works), Some((_, _, why))) => {
                    println!("{column}: {name}: {why}");
                }
                (Some(Outcome::Fails(error)), Some(Outcome::Works), None) => {
                    println!("{column}: {name}: FAILED: {error}");
                    fine = false;
                }
                (Some(Outcome::Fails(error)), _, _) => {
                    println!("{column}: {name}: fails, as with the usual runtime: {error}");
                }
                (Some(Outcome::Works), _, Some(_)) => {
                    println!("{column}: {name}: works, and is listed as an exception");
                    fine = false;
                }
                _ => {}
            }
        }
    }
    fine
}
