package main

// checkpoint save, inspect, verify, restore, remove: a guest in a file (export and
// import, which are between Xen and us, are in checkpointxl.go). The
// daemon saves and restores, since it has the guest and its disks; a file can be
// looked at by anybody who may read it.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"understudy/checkpoint"
	"understudy/config"
	"understudy/host"
	"understudy/status"
)

func checkpointCommand(f *common) *cobra.Command {
	c := &cobra.Command{
		Use:   "checkpoint",
		Short: "Save a guest to a file, look at the file, go on from it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return exitError{exitUsage, fmt.Errorf("which of its commands? See `%s --help`", cmd.CommandPath())}
		},
	}
	c.AddCommand(saveCommand(f), inspectCommand(f), verifyFileCommand(f), restoreCommand(f), removeCommand(f), exportCommand(f), importCommand(f))
	return c
}

func saveCommand(f *common) *cobra.Command {
	var req host.SaveRequest
	c := &cobra.Command{
		Use:   "save GUEST FILE",
		Short: "Save a running guest; it runs on, unless it is to stop",
		Long: `Save a running guest to FILE: memory, devices, and what its disks were at that
moment. Pages that are on a disk are not saved but referred to, so the file is
worth something only together with the disks as they were:

  --stop  the guest stops with the save, and its disks stay as they are
  --pin   the guest runs on, and its disks' old content is kept in FILE.pin
          before it is overwritten; "checkpoint remove FILE" ends that

With neither, the file can be restored until the guest next writes to a disk. A
guest without disks served by understudy needs none of this.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if req.Pin && req.Stop {
				return exitError{exitUsage, errors.New("--pin and --stop: a guest that is stopped needs no pin, leave one out")}
			}
			if req.File, err = filepath.Abs(args[1]); err != nil {
				return err
			}
			if req.IncrementalTo != "" {
				if req.IncrementalTo, err = filepath.Abs(req.IncrementalTo); err != nil {
					return err
				}
			}
			var r host.SaveResult
			if err := f.onFile(cmd, args[0], "save", req, &r); err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), r, func(w io.Writer) error { return printSaved(w, r) })
		},
	}
	c.Flags().StringVar(&req.IncrementalTo, "incremental-to", "", "save only what changed since this earlier `file`, which stays needed")
	c.Flags().BoolVar(&req.Pin, "pin", false, "keep what is overwritten on the disks, so that the file stays good")
	c.Flags().BoolVar(&req.Stop, "stop", false, "stop the guest with the save")
	c.Flags().BoolVar(&req.Replace, "replace", false, "replace FILE if it exists")
	return c
}

func inspectCommand(f *common) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect FILE",
		Short: "Tell what a checkpoint file is and what it left out, for which reason",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := checkpoint.Open(args[0])
			if err != nil {
				return err
			}
			info := inspected{Info: file.Inspect(), Machine: machineOf(file)}
			if err := file.Close(); err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), info, func(w io.Writer) error { return printInfo(w, info) })
		},
	}
}

// inspected is what a file says of itself, and of a Xen guest's machine.
type inspected struct {
	checkpoint.Info
	Machine string `json:"machine,omitempty"`
}

// machineOf names the machine of a Xen guest's file, or says why it is none.
func machineOf(file *checkpoint.File) string {
	if file.Head().Hypervisor != string(config.Xen) {
		return ""
	}
	kept, err := keptIn(file)
	if err != nil {
		return "NOT RESTORABLE: " + err.Error()
	}
	return kept.String()
}

func verifyFileCommand(f *common) *cobra.Command {
	fileOnly := false
	c := &cobra.Command{
		Use:   "verify FILE",
		Short: "Read all that a restore would need: the file, and the disks through the daemon",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := checkpoint.Open(args[0])
			if err != nil {
				return err
			}
			head := file.Head()
			var r host.VerifyFileResult
			if fileOnly || len(head.Disks) == 0 {
				r, err = verifyHere(cmd.Context(), f, file)
			} else {
				var path string
				if path, err = filepath.Abs(args[0]); err == nil {
					err = f.onFile(cmd, head.Guest, "verify", status.FileRequest{File: path}, &r)
				}
				if errors.Is(err, status.ErrNoDaemon) {
					err = fmt.Errorf("%w (the daemon reads the disks; --file-only looks at the file alone)", err)
				}
			}
			if err == nil && r.Well() && head.Hypervisor == string(config.Xen) {
				if _, bad := keptIn(file); bad != nil {
					r.Damages = append(r.Damages, host.FileDamage{Error: bad.Error()})
				}
			}
			if err = errors.Join(err, file.Close()); err != nil {
				return err
			}
			if err := f.print(cmd.OutOrStdout(), r, func(w io.Writer) error { return printVerified(w, r) }); err != nil {
				return err
			}
			if !r.Well() {
				return exitError{exitDiffers, fmt.Errorf("%s cannot be restored here", args[0])}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&fileOnly, "file-only", false, "do not look at the disks")
	return c
}

// verifyHere verifies a file without its disks.
func verifyHere(ctx context.Context, f *common, file *checkpoint.File) (host.VerifyFileResult, error) {
	bar := newBar(f, os.Stderr)
	defer bar.end()
	report, err := file.Verify(ctx, nil, func(done, total uint64) { bar.show(host.StageVerify, done, total) })
	return host.FoundInFile(report), err
}

func restoreCommand(f *common) *cobra.Command {
	var req host.RestoreRequest
	var lazy bool
	c := &cobra.Command{
		Use:   "restore GUEST FILE",
		Short: "Let a stopped guest go on from a checkpoint file, on this host",
		Long: `Let a stopped guest go on from FILE on this host. Its disks must be as they were
when it was saved; a disk that was pinned is rolled back first, and what was
written to it since is gone. The guest is protected again by itself.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if req.Eager && lazy {
				return exitError{exitUsage, errors.New("--eager and --lazy: leave one out")}
			}
			if req.File, err = filepath.Abs(args[1]); err != nil {
				return err
			}
			var r host.RestoreResult
			if err := f.onFile(cmd, args[0], "restore", req, &r); err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), r, func(w io.Writer) error { return printRestored(w, args[0], r) })
		},
	}
	c.Flags().BoolVar(&req.Eager, "eager", false, "restore all of the memory before the guest runs")
	c.Flags().BoolVar(&lazy, "lazy", false, "restore memory as the guest touches it, and the rest behind it (the default)")
	return c
}

func removeCommand(f *common) *cobra.Command {
	var req status.FileRequest
	c := &cobra.Command{
		Use:   "remove FILE",
		Short: "Remove a checkpoint file, and end its pins",
		Long: `Remove a checkpoint file, and end its pins. A file that another one builds on is
kept: remove the newest of a series first.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			file, err := checkpoint.Open(path)
			if err != nil {
				return err
			}
			head := file.Head()
			if err := file.Close(); err != nil {
				return err
			}
			req.File = path
			r := status.FileRemoved{File: path, Kept: req.Keep}
			if pinned(head) {
				err = f.onFile(cmd, head.Guest, "remove", req, &r)
			} else if !req.Keep {
				err = checkpoint.Remove(path)
			}
			if err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), r, func(w io.Writer) error {
				what := "removed"
				if r.Kept {
					what = "kept, not pinned any more"
				}
				_, err := fmt.Fprintf(w, "%s: %s\n", r.File, what)
				return err
			})
		},
	}
	c.Flags().BoolVar(&req.Keep, "keep-file", false, "end the pins only")
	return c
}

func pinned(head checkpoint.Head) bool {
	for _, d := range head.Disks {
		if d.Pin != "" {
			return true
		}
	}
	return false
}

// onFile asks the daemon for an operation on a file and shows how far it is.
func (f *common) onFile(cmd *cobra.Command, guest, operation string, request, result any) error {
	c, err := f.client()
	if err != nil {
		return err
	}
	bar := newBar(f, os.Stderr)
	defer bar.end()
	return c.Checkpoint(cmd.Context(), guest, operation, request, result, bar.show)
}
