# shellcheck shell=sh
# Where the tools VM's user-installed tools are. Sourced by every login shell, so: no forks.
for claude_sandbox_dir in \
    /usr/local/go/bin \
    "$HOME/go/bin" \
    "$HOME/.cargo/bin" \
    "$HOME/.local/share/fnm/aliases/default/bin" \
    "$HOME/.sdkman/candidates/java/current/bin" \
    "$HOME/.sdkman/candidates/kotlin/current/bin" \
    "$HOME/.sdkman/candidates/scala/current/bin" \
    "$HOME/.sdkman/candidates/maven/current/bin" \
    "$HOME/.sdkman/candidates/gradle/current/bin" \
    "$HOME/.sdkman/candidates/sbt/current/bin" \
    "$HOME/.local/bin"; do
    case ":$PATH:" in
        *":$claude_sandbox_dir:"*) ;;
        *) [ -d "$claude_sandbox_dir" ] && PATH="$claude_sandbox_dir:$PATH" ;;
    esac
done
unset claude_sandbox_dir
export PATH
if [ -z "${JAVA_HOME:-}" ] && [ -d "$HOME/.sdkman/candidates/java/current" ]; then
    export JAVA_HOME="$HOME/.sdkman/candidates/java/current"
fi
