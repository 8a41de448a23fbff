#    Licensed under the Apache License, Version 2.0 (the "License"); you may
#    not use this file except in compliance with the License. You may obtain
#    a copy of the License at
#
#         http://www.apache.org/licenses/LICENSE-2.0
#
#    Unless required by applicable law or agreed to in writing, software
#    distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
#    WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
#    License for the specific language governing permissions and limitations
#    under the License.

"""What the real Sheepdog does, recorded, and a suite that holds us to it.

``transcripts.json`` holds calls of dog on a real Sheepdog 1.0.1 with their
exit status, standard output and standard error, in the order in which they
were made. It is never edited by hand: ``python -m contract.record`` writes it
anew. The suite replays them on the simulator, or on a real cluster, see
clusters.py. It compares tgtd and the simulator's model of it as well.
"""
