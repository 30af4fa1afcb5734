package workload

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// fio has the disk's fio measure for a while.
func fio(ctx context.Context, j *job) (int64, error) {
	set := j.settings
	if set["bs"] < 512 || set["depth"] < 1 || set["seconds"] < 1 || set["size"] < 1 {
		return 0, errors.New("want bs of at least 512, depth, seconds and size of at least 1")
	}
	mode := map[[2]bool]string{{false, false}: "read", {true, false}: "write", {false, true}: "randread", {true, true}: "randwrite"}[[2]bool{set["write"] != 0, set["random"] != 0}]
	const file = "/var/tmp/fio"
	said, err := j.program(ctx, nil, "/usr/bin/fio", "--name=load", "--thread", "--filename="+file, "--rw="+mode, "--ioengine=libaio", "--direct=1",
		fmt.Sprintf("--bs=%d", set["bs"]), fmt.Sprintf("--iodepth=%d", set["depth"]), fmt.Sprintf("--size=%dm", set["size"]),
		"--time_based", fmt.Sprintf("--runtime=%d", set["seconds"]), fmt.Sprintf("--sync=%d", min(1, set["sync"])), "--minimal", "--terse-version=3")
	if err != nil {
		return 0, err
	}
	ops, kbs, iops, err := parseFio(said, set["write"] != 0)
	if err != nil {
		return 0, err
	}
	j.tell("%s iops=%d kibs=%d", mode, iops, kbs)
	_, err = j.program(ctx, nil, "/bin/rm", file)
	return ops, err
}

// parseFio finds requests, KiB/s and requests per second in terse output, version
// 3 of fio(1): numbers of reads from field 6 on, of writes from field 47 on.
func parseFio(said string, writes bool) (ops, kbs, iops int64, err error) {
	said = strings.TrimSpace(said)
	fields := strings.Split(said[strings.LastIndexByte(said, '\n')+1:], ";")
	first := 6 - 1
	if writes {
		first = 47 - 1
	}
	if len(fields) < first+4 || fields[0] != "3" {
		return 0, 0, 0, fmt.Errorf("fio says %.300q, want a line of terse output", said)
	}
	var n [3]int64 // KiB/s, requests per second, milliseconds
	for i := range n {
		if n[i], err = strconv.ParseInt(fields[first+1+i], 10, 64); err != nil {
			return 0, 0, 0, fmt.Errorf("in fio's terse output: %w", err)
		}
	}
	return n[1] * n[2] / 1000, n[0], n[1], nil
}
