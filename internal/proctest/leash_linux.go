package proctest

import (
	"os/exec"
	"syscall"
)

// leash makes the kernel kill cmd when the test binary ends, also by a panic or
// a time limit, when no cleanup runs. Precisely, it does so when the thread
// that started cmd ends (prctl(2), PR_SET_PDEATHSIG); the threads of a test
// binary stay, unless a goroutine ends that was locked to one.
func leash(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
}
