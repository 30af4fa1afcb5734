package main

// Each shell, with the completion that the program writes for it, offers what a
// person would want next: commands, and the names that the configuration has.

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// completing is a directory with a configuration and the shells' completions.
func completing(t *testing.T) (dir, config string) {
	t.Helper()
	dir = t.TempDir()
	run := func(args ...string) []byte {
		out, err := exec.Command(filepath.Join(programs, "understudy"), args...).Output()
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		return out
	}
	run("init", "--dir", dir, "--host-address", "north=192.0.2.1:7400", "--host-address", "south=192.0.2.2:7400", "--host-address", "judge=192.0.2.3:7400")
	path := filepath.Join(dir, "understudy.toml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	drills := "\n[[drill]]\nname = \"weekly\"\nguest = \"web\"\nkind = \"failover\"\n[[drill]]\nname = \"nightly\"\nguest = \"web\"\nkind = \"bubble\"\n"
	if err := os.WriteFile(path, append(text, drills...), 0o600); err != nil {
		t.Fatal(err)
	}
	for shell, file := range map[string]string{"bash": "understudy", "zsh": "_understudy", "fish": "understudy.fish"} {
		if err := os.WriteFile(filepath.Join(dir, file), run("completion", shell), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, path
}

// in runs a script in a shell, with the programs in its path.
func in(t *testing.T, dir string, shell ...string) string {
	t.Helper()
	c := exec.Command(shell[0], shell[1:]...)
	c.Dir = dir
	c.Env = []string{"PATH=" + programs + ":/usr/bin:/bin", "HOME=" + dir, "TERM=dumb", "LC_ALL=C.UTF-8"}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", shell, err, out)
	}
	return string(out)
}

func TestEveryShellOffersWhatComesNext(t *testing.T) {
	t.Parallel()
	dir, config := completing(t)
	bash := func(words ...string) string {
		return in(t, dir, append([]string{"bash", "--norc", "-c", `. /usr/share/bash-completion/bash_completion
. ./understudy
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9; COMP_KEY=9
__start_understudy
printf '%s\n' "${COMPREPLY[@]}"`, "bash", "understudy"}, words...)...)
	}
	fish := func(words ...string) string {
		return in(t, dir, "fish", "--no-config", "-c", "source ./understudy.fish; complete -C '"+strings.Join(append([]string{"understudy"}, words...), " ")+"'")
	}
	zsh := func(words ...string) string { // what its function asks the program
		return in(t, dir, append([]string{"zsh", "-f", "-c", `zsh -n ./_understudy && autoload -U compinit && compinit -D && . ./_understudy && [ "$_comps[understudy]" = _understudy ] && understudy __complete "$@"`,
			"zsh"}, words...)...)
	}
	for name, ask := range map[string]func(...string) string{"bash": bash, "fish": fish, "zsh": zsh} {
		for _, c := range []struct {
			words   []string
			want    []string
			neither string
		}{
			{[]string{"--config", config, "switchover", ""}, []string{"web"}, "understudy.toml"},
			{[]string{"--config", config, "status", "--ho"}, []string{"--host"}, "--socket"},
			{[]string{"--config", config, "--host", ""}, []string{"north", "south", "judge"}, "web"},
			{[]string{"--config", config, "--host", "so"}, []string{"south"}, "north"},
			{[]string{"--config", config, "--output", ""}, []string{"table", "json"}, "web"},
			{[]string{"--config", config, "config", "ch"}, []string{"check"}, "web"},
			{[]string{"--config", config, "drill", "run", ""}, []string{"weekly", "nightly"}, "web"},
			{[]string{"--config", config, "drill", "run", "--guest", ""}, []string{"web"}, "weekly"},
			{[]string{"--config", config, "drill", "run", "--fault", ""}, []string{"kill", "freeze", "cut"}, "web"},
			{[]string{"--config", config, "events", "--guest", ""}, []string{"web"}, "north"},
			{[]string{"--config", config, "host", "replace", ""}, []string{"north", "judge"}, "web"},
			{[]string{"--config", "/nowhere", "switchover", ""}, nil, "web"},
		} {
			got := ask(c.words...)
			for _, w := range c.want {
				if !strings.Contains("\n"+got, "\n"+w) {
					t.Errorf("%s: after %q it offers %q, want %q", name, c.words, got, w)
				}
			}
			if strings.Contains("\n"+got, "\n"+c.neither) {
				t.Errorf("%s: after %q it offers %q", name, c.words, got)
			}
		}
	}
}
