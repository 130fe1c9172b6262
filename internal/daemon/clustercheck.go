package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"understudy/cluster"
	"understudy/cluster/etcd"
	"understudy/cluster/peer"
	"understudy/config"
	"understudy/internal/pemfile"
)

// ClusterCheck is what a look at one part of a cluster has found.
type ClusterCheck struct {
	What, Detail string
	Endpoint     bool // What is an endpoint of the store
	Took         time.Duration
	Err          error

	// Warning tells that Err need not be a mistake in these settings.
	Warning bool
}

// CheckCluster looks at the store and at the other instances of the settings, and
// changes nothing. Where there is no cluster it finds nothing.
func CheckCluster(ctx context.Context, settings config.Settings) []ClusterCheck {
	c := settings.Cluster
	looks := make([]func(context.Context) []ClusterCheck, 0, len(c.Endpoints)+len(c.Members))
	for _, at := range c.Endpoints {
		looks = append(looks, func(ctx context.Context) []ClusterCheck { return checkStore(ctx, settings, at) })
	}
	var identity *pemfile.Identity
	var own []ClusterCheck
	if c.Peer.Cert != "" {
		check := ClusterCheck{What: "certificate " + c.Peer.Cert}
		if identity, check.Err = openIdentity(c, hclog.NewNullLogger()); check.Err == nil {
			var until time.Time
			cert, authorities := identity.Get()
			until, check.Warning, check.Err = judge(c, cert, authorities, time.Now())
			check.Detail = "for the other instances, valid until " + until.Format(time.RFC3339)
		}
		own = append(own, check)
	}
	for _, m := range c.Members {
		if m.Name != c.Member && m.Address != "" && (c.Secret.IsSet() || identity != nil) {
			looks = append(looks, func(ctx context.Context) []ClusterCheck {
				return []ClusterCheck{checkMember(ctx, c, identity, m, settings.Relays)}
			})
		}
	}
	found := make([][]ClusterCheck, len(looks))
	var wg sync.WaitGroup
	for i, look := range looks {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, c.Lease)
			defer cancel()
			found[i] = look(ctx)
		})
	}
	wg.Wait()
	all := own
	recorded := false // one endpoint has shown the records: the others have the same
	for _, f := range found {
		if recorded && len(f) > 1 {
			f = f[:1]
		}
		recorded = recorded || len(f) > 1
		all = append(all, f...)
	}
	return all
}

// checkStore reads the record of each relay from one member of the store.
func checkStore(ctx context.Context, settings config.Settings, endpoint string) []ClusterCheck {
	c := settings.Cluster
	first := ClusterCheck{What: "store " + endpoint, Endpoint: true}
	store, err := newStore(c, endpoint)
	if err != nil {
		first.Err = err
		return []ClusterCheck{first}
	}
	defer store.Close()
	all := []ClusterCheck{first}
	began := time.Now()
	for _, r := range settings.Relays {
		record, known, err := cluster.NewRegister(store, c.Name, r.Name, c.Member).Record(ctx)
		if all[0].Took == 0 {
			all[0].Took = time.Since(began)
		}
		if err != nil {
			all[0].Err = err
			if ctx.Err() != nil {
				all[0].Err = fmt.Errorf("no answer within %v: the etcd has no leader", c.Lease)
			}
			return all[:1]
		}
		all = append(all, checkRecord(c, r, record, known))
	}
	if err := store.Examine(ctx); errors.Is(err, etcd.ErrFull) || errors.Is(err, etcd.ErrKeepsAll) {
		all = append(all, ClusterCheck{What: "space of the store", Err: err, Warning: !errors.Is(err, etcd.ErrFull)})
	}
	return all
}

// checkRecord compares the record of a relay with the settings.
func checkRecord(c config.Cluster, r config.Relay, record cluster.Record, known bool) ClusterCheck {
	check := ClusterCheck{What: "record of " + r.Name}
	roster := strings.Join(record.Roster, ", ")
	switch own := alike(r, c); { // in the order of what has to be mended first
	case !known:
		check.Detail = "none yet in the cluster " + c.Name + ": the first instance makes it"
	case !slices.Contains(record.Roster, c.Member):
		check.Err = fmt.Errorf("%s is not one of its members (%s): understudy cluster add %s at one of them", c.Member, roster, c.Member)
	case record.Settings != own:
		ours, agreed := cluster.Differences(own, record.Settings)
		check.Err = fmt.Errorf("the cluster has %s, and this instance %s", agreed, ours)
		check.Warning = true // as during a change, one instance after the other
	default:
		check.Detail = fmt.Sprintf("epoch %d, primary %s, members %s", record.Epoch, record.Host, roster)
	}
	return check
}

// checkMember asks another instance for a lease for a record that does not exist, which it
// does not grant.
func checkMember(ctx context.Context, c config.Cluster, identity *pemfile.Identity, m config.ClusterMember, relays []config.Relay) ClusterCheck {
	check := ClusterCheck{What: fmt.Sprintf("member %s at %s", m.Name, m.Address)}
	client, err := peer.NewClient(peer.ClientConfig{Config: peerConfig(c, identity), To: m.Name, Address: m.Address})
	if err != nil {
		check.Err = err
		return check
	}
	defer client.Close()
	began := time.Now()
	for _, r := range relays {
		if _, check.Err = client.Grants(ctx, peer.Question{Relay: r.Name}); check.Err != nil {
			break
		}
	}
	check.Took = time.Since(began)
	if netErr := net.Error(nil); errors.As(check.Err, &netErr) {
		check.Warning = true
	}
	return check
}
