package egress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// nftConn is a netlink socket that sends nftables batches (linux/netfilter/
// nf_tables.h, nfnetlink.h). It is written out here because a table that dies
// with its socket (NFT_TABLE_F_OWNER) and a batch that is encoded once and sent
// for every lease renewal are both out of the Go libraries' reach.
type nftConn struct {
	fd  int
	seq uint32
	in  []byte
}

const (
	// tableOwner makes a table vanish with the netlink socket that made it, and
	// refuses every other socket's changes (NFT_TABLE_F_OWNER, Linux 5.12).
	tableOwner = 0x2
	// ifnameType is nft's number for "ifname" keys (libnftnl datatype.h), used
	// only for listing.
	ifnameType = 41
)

func openNFT() (*nftConn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("opening a netfilter socket: %w", err)
	}
	c := &nftConn{fd: fd, in: make([]byte, 16<<10)}
	// The kernel answers within the send; the limit only bounds a surprise.
	limit := unix.NsecToTimeval(int64(time.Second))
	if err := errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
	); err != nil {
		return nil, errors.Join(fmt.Errorf("preparing a netfilter socket: %w", err), unix.Close(fd))
	}
	return c, nil
}

func (c *nftConn) close() error { return unix.Close(c.fd) }

// run sends one batch and waits for the kernel's verdict on it: all of it was
// done, or nothing.
func (c *nftConn) run(b *nftBatch) error {
	c.seq++
	b.stamp(c.seq)
	if err := unix.Sendto(c.fd, b.bytes, 0, kernel); err != nil {
		return fmt.Errorf("sending to nftables: %w", err)
	}
	for {
		n, err := unix.Read(c.fd, c.in)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("reading the answer of nftables: %w", err)
		}
		done, err := verdict(c.in[:n], c.seq)
		if done || err != nil {
			return err
		}
	}
}

// kernel is the address of the kernel's end of a netlink socket.
var kernel = &unix.SockaddrNetlink{Family: unix.AF_NETLINK}

// verdict looks through the answers in b for one to the batch seq. An error of
// any message undoes the whole batch.
func verdict(b []byte, seq uint32) (done bool, err error) {
	for len(b) >= unix.NLMSG_HDRLEN+4 {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.NLMSG_HDRLEN+4 || size > len(b) {
			return false, fmt.Errorf("nftables answered with a message of %d bytes in %d", size, len(b))
		}
		if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR && binary.NativeEndian.Uint32(b[8:]) == seq {
			if errno := int32(binary.NativeEndian.Uint32(b[unix.NLMSG_HDRLEN:])); errno != 0 {
				return true, fmt.Errorf("nftables refused: %w", unix.Errno(-errno))
			}
			done = true
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return done, nil
}

// nftBatch is a list of nftables messages, encoded and ready to be sent any
// number of times.
type nftBatch struct {
	bytes []byte
	msg   int   // offset of the message under construction
	seqs  []int // offsets of the sequence numbers
}

func newBatch() *nftBatch {
	b := &nftBatch{}
	b.begin(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	return b
}

// message starts an nftables message of the netdev family.
func (b *nftBatch) message(kind int, flags uint16) *nftBatch {
	b.end()
	b.begin(uint16(unix.NFNL_SUBSYS_NFTABLES<<8|kind), unix.NLM_F_REQUEST|flags, unix.NFPROTO_NETDEV, 0)
	return b
}

// finish asks for an acknowledgement of the last message and closes the batch.
func (b *nftBatch) finish() *nftBatch {
	flags := b.bytes[b.msg+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	b.end()
	b.begin(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	b.end()
	return b
}

func (b *nftBatch) begin(kind, flags uint16, family byte, resource uint16) {
	b.msg = len(b.bytes)
	b.seqs = append(b.seqs, b.msg+8)
	b.bytes = append(b.bytes, make([]byte, unix.NLMSG_HDRLEN)...)
	binary.NativeEndian.PutUint16(b.bytes[b.msg+4:], kind)
	binary.NativeEndian.PutUint16(b.bytes[b.msg+6:], flags)
	b.bytes = append(b.bytes, family, unix.NFNETLINK_V0)
	b.bytes = binary.BigEndian.AppendUint16(b.bytes, resource)
}

func (b *nftBatch) end() {
	binary.NativeEndian.PutUint32(b.bytes[b.msg:], uint32(len(b.bytes)-b.msg))
}

func (b *nftBatch) stamp(seq uint32) {
	for _, at := range b.seqs {
		binary.NativeEndian.PutUint32(b.bytes[at:], seq)
	}
}

// attr appends an attribute and returns the offset of its value.
func (b *nftBatch) attr(kind uint16, value []byte) int {
	at := len(b.bytes)
	b.bytes = binary.NativeEndian.AppendUint16(b.bytes, uint16(4+len(value)))
	b.bytes = binary.NativeEndian.AppendUint16(b.bytes, kind)
	b.bytes = append(b.bytes, value...)
	for len(b.bytes)%4 != 0 {
		b.bytes = append(b.bytes, 0)
	}
	return at + 4
}

func (b *nftBatch) str(kind uint16, s string) { b.attr(kind, append([]byte(s), 0)) }

func (b *nftBatch) u32(kind uint16, v uint32) { b.attr(kind, binary.BigEndian.AppendUint32(nil, v)) }

// nest appends an attribute whose value is what inside appends.
func (b *nftBatch) nest(kind uint16, inside func()) {
	at := len(b.bytes)
	b.attr(kind|unix.NLA_F_NESTED, nil)
	inside()
	binary.NativeEndian.PutUint16(b.bytes[at:], uint16(len(b.bytes)-at))
}
