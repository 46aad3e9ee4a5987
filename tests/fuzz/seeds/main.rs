//! Writes the first inputs of every fuzz target: `seeds DIR` makes `DIR/<target>/<seed>`.
//!
//! Valid inputs, made by the code that makes them in earnest, so that fuzzing starts behind the
//! first checks of a parser.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

mod image;
mod protocol;

fn main() -> io::Result<()> {
    let Some(dir) = env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: seeds DIR");
        std::process::exit(2);
    };
    save(&dir, "protocol_frame", &protocol::frames())?;
    save(&dir, "image_manifest", &image::documents())?;
    save(&dir, "registry_answer", &image::answers())?;
    save(&dir, "layer_tar", &image::layers()?)?;
    save(&dir, "cp_archive", &image::copies()?)
}

fn save(dir: &Path, target: &str, seeds: &[Vec<u8>]) -> io::Result<()> {
    let dir = dir.join(target);
    fs::create_dir_all(&dir)?;
    for (index, seed) in seeds.iter().enumerate() {
        fs::write(dir.join(format!("seed-{index}")), seed)?;
    }
    Ok(())
}
