#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| onlyonce::fuzzing::frames(data));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    onlyonce_fuzz::main("frames", onlyonce::fuzzing::frames)
}
