package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Processor time tells what something costs also while the machine is busy with
// other things, when time by the clock does not.

// tick is the unit of /proc/PID/stat, the same on every Linux (USER_HZ).
const tick = time.Second / 100

// processTime is what the process has used so far, its children not counted.
func processTime(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// Field 2, the name in parentheses, may hold anything; utime and stime are 14 and 15.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: too short", pid)
	}
	var sum time.Duration
	for _, field := range fields[11:13] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		sum += time.Duration(ticks) * tick
	}
	return sum, nil
}

// ownTime is what this process and the children it has waited for have used so far.
func ownTime() (time.Duration, error) {
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var usage unix.Rusage
		if err := unix.Getrusage(who, &usage); err != nil {
			return 0, fmt.Errorf("ask for the processor time used: %w", err)
		}
		sum += time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	}
	return sum, nil
}

// findProcess is the number of the only process that runs the program.
func findProcess(program string) (int, error) {
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return 0, err
	}
	found := 0
	for _, file := range names {
		name, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(name)) != program {
			continue
		}
		if found != 0 {
			return 0, fmt.Errorf("there is more than one %s", program)
		}
		if found, err = strconv.Atoi(filepath.Base(filepath.Dir(file))); err != nil {
			return 0, err
		}
	}
	if found == 0 {
		return 0, fmt.Errorf("there is no %s", program)
	}
	return found, nil
}
