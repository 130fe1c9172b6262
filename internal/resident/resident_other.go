//go:build !linux

package resident

func unmapFile() error { return nil }
