package proctest

import (
	"os/exec"
	"syscall"
)

// leash has the kernel kill cmd when the test binary is gone, a panic or a
// time limit included, when no cleanup runs. Strictly it is when the thread
// that started cmd is gone (prctl(2), PR_SET_PDEATHSIG); those of a test binary
// stay, unless a goroutine ends that was locked to one.
func leash(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
}
