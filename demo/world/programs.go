package world

import (
	"fmt"
	"os"
	"os/exec"
)

// Programs builds understudy and understudyd of this module into a directory
// that every user may read, for tests. The caller removes the directory.
func Programs() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "understudy-programs-"); err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-o", dir+"/", "understudy/cmd/understudy", "understudy/cmd/understudyd")
	out, err := build.CombinedOutput()
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		_ = os.RemoveAll(dir)
		return "", fmt.Errorf("%s: %w\n%s", build, err, out)
	}
	return dir, nil
}
