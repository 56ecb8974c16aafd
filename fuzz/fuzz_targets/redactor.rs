#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| agentlab_fuzz::run("redactor", input));
