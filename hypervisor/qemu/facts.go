package qemu

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
)

// hostCPU describes the processor of this host: model and a hash of its
// features. Equal descriptions mean that a guest finds the same on both.
func hostCPU() (string, error) {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	var model, flags string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		key, value, ok := strings.Cut(lines.Text(), ":")
		if !ok {
			if model != "" {
				break // the first processor's lines are over
			}
			continue
		}
		switch strings.TrimSpace(key) {
		case "model name":
			model = strings.TrimSpace(value)
		case "flags":
			flags = strings.TrimSpace(value)
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("read /proc/cpuinfo: %w", err)
	}
	sum := sha256.Sum256([]byte(flags))
	return fmt.Sprintf("%s, features %s", model, hex.EncodeToString(sum[:8])), nil
}
