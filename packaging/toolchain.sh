# Sourced by the Makefile's recipes: puts a cargo that is new enough on PATH and says for which target the guest's
# static binary is built. Sets CARGO_VERSION, RUNNER_TARGET and, for the gnu fall-back, RUNNER_RUSTFLAGS.

agentlab_rust_needed=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "${AGENTLAB_ROOT:-.}/Cargo.toml")

agentlab_cargo_fits() {
    version=$("$1" --version 2>/dev/null | sed -n 's/^cargo \([0-9.]*\).*/\1/p')
    [ -n "$version" ] && [ "$(printf '%s\n%s\n' "$agentlab_rust_needed" "$version" | sort -V | head -n 1)" = "$agentlab_rust_needed" ]
}

agentlab_find_cargo() {
    for directory in "$(dirname "$(command -v cargo 2>/dev/null || echo /nonexistent/cargo)")" \
        "${CARGO_HOME:-$HOME/.cargo}/bin" /usr/bin; do
        if [ -x "$directory/cargo" ] && agentlab_cargo_fits "$directory/cargo"; then
            PATH="$directory:$PATH"
            export PATH
            return 0
        fi
    done
    return 1
}

agentlab_runner_target() {
    if [ -d "$(rustc --print target-libdir --target x86_64-unknown-linux-musl 2>/dev/null)" ]; then
        RUNNER_TARGET=x86_64-unknown-linux-musl
        RUNNER_RUSTFLAGS=
    else
        RUNNER_TARGET=x86_64-unknown-linux-gnu
        RUNNER_RUSTFLAGS="-C target-feature=+crt-static"
    fi
}
