//! Credit-based flow control of one connection (virtio 1.2, section 5.10.6.3): how much either
//! side may still send. All counters are of bytes and wrap.

use super::packet::Packet;

/// Both directions' accounts.
#[derive(Debug)]
pub(super) struct Credit {
    /// Our buffer, as announced: what the guest may have sent that is not forwarded yet.
    window: u32,
    /// Came from the guest.
    received: u32,
    /// Left our buffer.
    forwarded: u32,
    /// `forwarded` as the guest last heard.
    announced: u32,
    /// Went to the guest.
    sent: u32,
    /// The guest's buffer.
    peer_window: u32,
    /// Left the guest's buffer.
    peer_forwarded: u32,
}

impl Credit {
    pub(super) fn new(window: u32) -> Self {
        Self {
            window,
            received: 0,
            forwarded: 0,
            announced: 0,
            sent: 0,
            peer_window: 0,
            peer_forwarded: 0,
        }
    }

    pub(super) fn window(&self) -> u32 {
        self.window
    }

    /// Learns the guest's account from one of its packets. Nothing is believed further than that
    /// the guest has as much room as it says: its own memory is what fills.
    pub(super) fn hear(&mut self, packet: &Packet<'_>) {
        self.peer_window = packet.buf_alloc();
        self.peer_forwarded = packet.fwd_cnt();
    }

    /// Tells the guest our account in a packet.
    pub(super) fn tell(&mut self, packet: &mut Packet<'_>) {
        packet
            .set_buf_alloc(self.window)
            .set_fwd_cnt(self.forwarded);
        self.announced = self.forwarded;
    }

    /// Bytes that may be sent to the guest.
    pub(super) fn to_send(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.peer_forwarded);
        // A guest that claims to have read more than it got has wrapped round: no credit.
        self.peer_window.saturating_sub(in_flight)
    }

    pub(super) fn send(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// Accounts for bytes from the guest. False if they are more than it had credit for.
    #[must_use]
    pub(super) fn receive(&mut self, bytes: u32) -> bool {
        let held = self.received.wrapping_sub(self.forwarded);
        if bytes > self.window.saturating_sub(held) {
            return false;
        }
        self.received = self.received.wrapping_add(bytes);
        true
    }

    pub(super) fn forward(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    /// Whether the guest should hear from us: it believes that half of our buffer is taken, and
    /// part of that is wrong. Earlier would cost it needless interrupts, later would stall it.
    pub(super) fn is_update_due(&self) -> bool {
        let believed_taken = self.received.wrapping_sub(self.announced);
        self.forwarded != self.announced && believed_taken >= self.window / 2
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::{HEADER_SIZE, packet_in};
    use super::*;

    fn hear(credit: &mut Credit, buf_alloc: u32, fwd_cnt: u32) {
        let mut bytes = [0; HEADER_SIZE];
        let mut packet = packet_in(&mut bytes).unwrap();
        packet.set_buf_alloc(buf_alloc).set_fwd_cnt(fwd_cnt);
        credit.hear(&packet);
    }

    #[test]
    fn sends_no_more_than_the_guest_has_room_for() {
        let mut credit = Credit::new(1024);
        assert_eq!(credit.to_send(), 0);
        hear(&mut credit, 100, 0);
        assert_eq!(credit.to_send(), 100);
        credit.send(60);
        assert_eq!(credit.to_send(), 40);
        hear(&mut credit, 100, 60);
        assert_eq!(credit.to_send(), 100);
    }

    #[test]
    fn bogus_accounts_of_the_guest_give_no_credit() {
        let mut credit = Credit::new(1024);
        hear(&mut credit, 100, 1);
        assert_eq!(credit.to_send(), 0, "read what was never sent");
        hear(&mut credit, 100, 0);
        credit.send(100);
        hear(&mut credit, 100, 50);
        hear(&mut credit, 100, 20);
        assert_eq!(credit.to_send(), 20, "went backwards");
        hear(&mut credit, 0, 100);
        assert_eq!(credit.to_send(), 0);
        hear(&mut credit, 50, 10);
        assert_eq!(credit.to_send(), 0, "shrank below what is in flight");
        hear(&mut credit, u32::MAX, 100);
        assert_eq!(credit.to_send(), u32::MAX);
    }

    #[test]
    fn counters_wrap() {
        let mut credit = Credit::new(1000);
        hear(&mut credit, 100, 0);
        credit.send(u32::MAX - 9);
        hear(&mut credit, 100, u32::MAX - 9);
        credit.send(50);
        assert_eq!(credit.to_send(), 50);
        credit.received = u32::MAX - 1;
        credit.forwarded = u32::MAX - 1;
        credit.announced = u32::MAX - 1;
        assert!(credit.receive(1000));
        assert!(!credit.receive(1));
        credit.forward(1);
        assert!(credit.receive(1));
    }

    #[test]
    fn more_than_the_window_is_a_violation() {
        let mut credit = Credit::new(1000);
        assert!(credit.receive(600));
        assert!(!credit.receive(401));
        assert!(credit.receive(400));
        credit.forward(10);
        assert!(!credit.receive(11));
        assert!(credit.receive(10));
    }

    #[test]
    fn an_update_is_due_when_the_guest_believes_half_the_window_taken() {
        let mut credit = Credit::new(1000);
        assert!(credit.receive(499));
        credit.forward(499);
        assert!(!credit.is_update_due());
        assert!(credit.receive(1));
        credit.forward(1);
        assert!(credit.is_update_due());
        let mut bytes = [0; HEADER_SIZE];
        let mut packet = packet_in(&mut bytes).unwrap();
        credit.tell(&mut packet);
        assert_eq!((packet.buf_alloc(), packet.fwd_cnt()), (1000, 500));
        assert!(!credit.is_update_due());
        assert!(credit.receive(1000));
        assert!(!credit.is_update_due(), "there is nothing new to tell");
    }
}
