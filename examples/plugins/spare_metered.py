"""spare_metered: leaves a metered link that is busy for a path that answers, before the hold-down is over."""

from mapek import Inquiry, Plan, Policy, Step


class SpareMetered(Policy):
    name = "spare_metered"

    def plan(self, symptom, knowledge):
        seen = knowledge.latest.get("link_watch")
        for row, path in enumerate(seen.entities if seen and symptom.kind == "busy" else ()):
            peer = knowledge.topology.peer_of(path)
            active = knowledge.facts.get(f"active_path/{peer.name}")
            answers = not seen.gauges[row, 0] and seen.gauges[row, 1] < 1.0  # silent; answer_age, s
            if answers and active == f"{peer.name}/{symptom.entity.name}" != path.name:
                step = Step("netlink", "use_path", {"peer": peer.name, "path": path.name})
                proof = Inquiry("", peer.entity, "probe_route", within_ns=500_000_000)
                return Plan(self.name, peer.entity, (step,), proof, proof.within_ns, reason="busy")
