package main

import (
	"context"
	"fmt"
	"time"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/test/lab"
)

// showModes takes the running cluster to VXLAN and back under load.
func (d *demo) showModes(ctx context.Context) error {
	one := make([]*lab.Pod, 0, demoNodes)
	for i := 0; i < len(d.pods); i += demoPodsOnNode {
		one = append(one, d.pods[i])
	}
	d.say("A pod on each node and 1,000 packets a second each way between every two, data in bulk, and connections that stay open.\n")
	load, err := lab.StartLoad(ctx, lab.FullLoad(one))
	if err != nil {
		return err
	}
	for _, mode := range []v1alpha1.PoolMode{v1alpha1.ModeVXLAN, v1alpha1.ModeNative} {
		if err = d.changeMode(ctx, mode); err != nil {
			break
		}
	}
	outcome := load.Stop()
	if err != nil {
		return err
	}
	d.say("And all the while:\n")
	d.block(outcome.String())
	if err := outcome.Clean(); err != nil {
		d.check(false, "the mode changes were noticed: %v", err)
	}
	d.say("%d packets sent, %d lost; %d connections broken.", outcome.Sent(), outcome.Lost(), outcome.Broken())
	return nil
}

func (d *demo) changeMode(ctx context.Context, mode v1alpha1.PoolMode) error {
	patch := fmt.Sprintf(`{"spec":{"mode":%q}}`, mode)
	begin := time.Now()
	if _, err := d.run(d.l.Kubectl(ctx, "patch", "ippool", lab.DefaultPool().Name, "--type", "merge", "-p", patch),
		"anywhere", "kubectl patch ippool default --type merge -p '"+patch+"'"); err != nil {
		return err
	}
	if err := d.l.WaitMode(ctx, lab.DefaultPool().Name, mode); err != nil {
		return err
	}
	d.say("Every node sends by %s %d ms after the command was given.\n", mode, time.Since(begin).Milliseconds())
	n := d.l.Nodes()[0]
	_, err := d.run(n.Command(ctx, d.l.Binary("netctl"), "node", "routes"), n.Name, "netctl node routes")
	return err
}
