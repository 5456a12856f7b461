//! The targets without cargo-fuzz: each file of the corpus once, then mutations of them, without coverage feedback. A
//! finding is a panic; the input that caused it is written to a file.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs, panic};

/// `target [seconds] [seed]`, or `target file...` to run these once.
pub fn main(name: &str, target: fn(&[u8])) -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let files: Vec<PathBuf> =
        words.iter().map(PathBuf::from).filter(|path| path.is_file()).collect();
    if !files.is_empty() {
        for file in &files {
            target(&read(file));
        }
        println!("{name}: {} files", files.len());
        return ExitCode::SUCCESS;
    }
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
    let (seconds, seed) = (number(0).unwrap_or(60), number(1).unwrap_or(1));
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut entries: Vec<PathBuf> = fs::read_dir(&corpus)
        .unwrap_or_else(|e| panic!("{}: {e}", corpus.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    let inputs: Vec<Vec<u8>> = entries.iter().map(|path| read(path)).collect();
    let mut random = Random(seed);
    let (begun, mut runs) = (Instant::now(), 0_u64);
    while begun.elapsed() < Duration::from_secs(seconds) {
        let input = match inputs.get(runs as usize) {
            Some(input) => input.clone(),
            None => random.mutate(&inputs),
        };
        if panic::catch_unwind(|| target(&input)).is_err() {
            let path = PathBuf::from(format!("{name}-finding"));
            fs::write(&path, &input).unwrap();
            println!("{name}: seed {seed}, run {runs}: {}", path.display());
            return ExitCode::FAILURE;
        }
        runs += 1;
    }
    println!("{name}: {runs} runs in {seconds} s, seed {seed}");
    ExitCode::SUCCESS
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }

    fn mutate(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let mut data = inputs[self.below(inputs.len())].clone();
        for _ in 0..=self.below(8) {
            let at = self.below(data.len());
            match self.below(6) {
                0 if !data.is_empty() => data[at] ^= 1 << self.below(8),
                1 if !data.is_empty() => data[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                2 => data.truncate(at),
                3 if data.len() >= at + 8 => {
                    let value = [0, 1, u64::MAX, 1 << 62, 1 << 63, 1 << 32][self.below(6)];
                    data[at..at + 8].copy_from_slice(&value.to_le_bytes());
                }
                4 => {
                    let other = &inputs[self.below(inputs.len())];
                    let from = self.below(other.len());
                    data.truncate(at);
                    data.extend_from_slice(&other[from..]);
                }
                _ => data.insert(at, self.below(256) as u8),
            }
        }
        data
    }
}
