"""Splits that no prepared data set holds: records from anywhere, and several splits as one."""

from collections.abc import Sequence

from medsd_jax.data.records import LabelValue, Record, Split


class RecordList:
    """Records as a split; an image is read when it is asked for.

    Attributes:
        name: of the split.
        fingerprint, identity: both name the content; equal for equal data.
        keys, texts, patient_ids, labels: one entry a record.
    """

    def __init__(self, records: Sequence[Record], name: str, fingerprint: str):
        self.name, self.fingerprint, self.identity = name, fingerprint, fingerprint
        self._records = tuple(records)
        self.keys: tuple[str, ...] = tuple(r.key for r in self._records)
        self.texts: tuple[str, ...] = tuple(r.text for r in self._records)
        self.patient_ids: tuple[str, ...] = tuple(r.patient_id for r in self._records)
        self.labels: tuple[dict[str, LabelValue], ...] = tuple(
            dict(r.labels) for r in self._records
        )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """Return one record."""
        return self._records[index]


class JoinedSplits:
    """The records of several splits, one split after the other.

    Attributes:
        name: of the whole.
        fingerprint, identity: of the parts.
        keys, texts, patient_ids, labels: one entry a record. Keys of two parts may be the same.
    """

    def __init__(self, parts: Sequence[Split], name: str):
        self.name, self.fingerprint = name, "+".join(part.fingerprint for part in parts)
        self.identity = "+".join(part.identity for part in parts)
        self._parts = tuple(parts)
        self._places = [(part, i) for part in self._parts for i in range(len(part))]
        self.keys: tuple[str, ...] = tuple(x for part in parts for x in part.keys)
        self.texts: tuple[str, ...] = tuple(x for part in parts for x in part.texts)
        self.patient_ids: tuple[str, ...] = tuple(x for part in parts for x in part.patient_ids)
        self.labels: tuple[dict[str, LabelValue], ...] = tuple(
            x for part in parts for x in part.labels
        )

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Record:
        """Return one record with its encoded image."""
        part, place = self._places[index]
        return part[place]
